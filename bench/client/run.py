"""gatescope's load client against its peers: capacity, accuracy, a stalled worker. One command, one run, one machine.

    python bench/client/run.py --rust vllm-rs --vllm PYTHON --aiohttp PYTHON --aiperf aiperf --guidellm guidellm

The truth server has one core to itself, each client (its whole process tree) another one. Clients take turns in every
round, so that what else the machine does hits all alike; the table holds medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peers
import psutil
from errors import Errors, errors
from peers import Peer, Task

HERE = Path(__file__).parent
TTFT_MS, ITL_MS = 50.0, 10.0
TIMED = {"firehose": False, "ttft_ms": TTFT_MS, "itl_ms": ITL_MS, "jitter": 0.2}
STALL_S, STALL_EVERY_S = 0.020, 0.100
SERVER_CORE, CLIENT_CORE = 0, 1
SCENARIOS = {  # name: (schedule, requests, concurrency, tokens, stalled)
    "32 streams": (TIMED, 160, 32, 64, False),
    "256 streams": (TIMED, 1024, 256, 64, False),
    "32 streams, stalled": (TIMED, 160, 32, 64, True),
}
PYTHON = "the best Python peer"
CAPACITY = {"an event a packet": 1, "8 events a packet": 8}
SIZES = (256, 1280)
CAPACITY_STREAMS, CAPACITY_TOKENS = 64, 128


@dataclass(frozen=True)
class Ran:
    """One run of one client."""

    cpu_s: float
    start_to_first_request_s: float
    delivered_share: float  # of the load that so many streams of this schedule offer
    errors: Errors


class Server:
    """The truth server on its own core."""

    def __init__(self, nice: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "truth_server.py"), "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: _place(SERVER_CORE, nice),
        )
        assert self._process.stderr is not None
        self.url = "http://" + self._process.stderr.readline().split()[2]

    def control(self, **fields: Any) -> None:
        urllib.request.urlopen(self.url + "/control", json.dumps({**fields, "reset": True}).encode()).close()

    def truth(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(self.url + "/truth") as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def _place(core: int, nice: int) -> None:
    os.sched_setaffinity(0, {core})
    if nice:
        os.nice(nice)


def run(peer: Peer, server: Server, folder: Path, scenario: tuple[dict, int, int, int, bool], nice: int) -> Ran:
    """Run one client on one scenario."""
    schedule, count, concurrency, tokens, stalled = scenario
    server.control(**schedule)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        task = Task(server.url, folder / "prompts.jsonl", count, concurrency, tokens, Path(out))
        started = time.perf_counter_ns()
        with open(folder / "client.log", "w") as log:
            process = subprocess.Popen(
                peer.command(task),
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
                preexec_fn=lambda: _place(CLIENT_CORE, nice),
            )
        over = threading.Event()
        if stalled:
            threading.Thread(target=_stall, args=(process.pid, over), daemon=True).start()
        _, status, usage = os.wait4(process.pid, 0)
        over.set()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{peer.name} failed: {(folder / 'client.log').read_text()[-800:]}")
        truth = server.truth()
        found = errors(truth, peer.rows(task))
    return Ran(
        cpu_s=usage.ru_utime + usage.ru_stime,
        start_to_first_request_s=(min(r["t_arrived"] for r in truth) - started) / 1e9,
        delivered_share=_delivered(truth, concurrency, tokens),
        errors=found,
    )


def _stall(pid: int, over: threading.Event) -> None:
    """Stop the client's whole tree for 20 ms in every 100, as a loaded node does."""
    while not over.wait(STALL_EVERY_S - STALL_S):
        for number in (signal.SIGSTOP, signal.SIGCONT):
            try:
                for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                    process.send_signal(number)
            except psutil.Error:
                pass
            if number == signal.SIGSTOP:
                time.sleep(STALL_S)


def _delivered(truth: list[dict[str, Any]], concurrency: int, tokens: int) -> float:
    """Tokens a second that the server sent, of those that back-to-back streams would get."""
    done = [r for r in truth if r["end"] == "done"]
    span = (max(r["t_done"] for r in done) - min(r["t_arrived"] for r in done)) / 1e9
    waves = -(-len(done) // concurrency)
    return waves * (TTFT_MS + (tokens - 1) * ITL_MS) / 1e3 / span


def capacity(peer: Peer, server: Server, folder: Path, burst: int, nice: int) -> float:
    """CPU seconds per 1e6 tokens of the client's process tree: the slope between two run sizes, so without start-up."""
    used = []
    for count in SIZES:
        schedule = {"firehose": True, "burst": burst}
        used.append(run(peer, server, folder, (schedule, count, CAPACITY_STREAMS, CAPACITY_TOKENS, False), nice).cpu_s)
    return (used[1] - used[0]) / ((SIZES[1] - SIZES[0]) * CAPACITY_TOKENS) * 1e6


def measure(clients: list[Peer], rounds: int, nice: int) -> dict[str, dict[str, list[Any]]]:
    """scenario → client → one value per round."""
    results: dict[str, dict[str, list[Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_inputs(folder)
        server = Server(nice)
        try:
            for number in range(rounds):
                for peer in clients if number % 2 == 0 else clients[::-1]:
                    for title, burst in CAPACITY.items():
                        cost = capacity(peer, server, folder, burst, nice)
                        results.setdefault(title, {}).setdefault(peer.name, []).append(cost)
                    for title, scenario in SCENARIOS.items():
                        ran = asdict(run(peer, server, folder, scenario, nice))
                        results.setdefault(title, {}).setdefault(peer.name, []).append(ran)
                    print(f"round {number + 1} of {rounds}: {peer.name}", file=sys.stderr)
        finally:
            server.stop()
    return results


# --- the table ----------------------------------------------------------------------------------------------------


def table(results: dict[str, dict[str, list[Any]]]) -> list[str]:
    """Markdown: a line a client, medians over rounds."""
    names = list(next(iter(results.values())))
    lines = [
        "| client | " + " | ".join(f"CPU s / 1e6 tokens, {t}" for t in CAPACITY) + " | start to first request, s |"
    ]
    lines.append("|---" * (len(CAPACITY) + 2) + "|")
    for name in names:
        costs = [_median(results[title][name]) for title in CAPACITY]
        starts = _median([r["start_to_first_request_s"] for r in results["32 streams"][name]])
        lines.append(f"| {name} | " + " | ".join(f"{c:.2f}" for c in costs) + f" | {starts:.2f} |")
    for title in SCENARIOS:
        lines += [
            "",
            f"{title}: absolute errors in ms, median / p99",
            "",
            "| client | TTFT | ITL | events read together |",
        ]
        lines.append("|---|---|---|---|")
        for name in names:
            runs = [r["errors"] for r in results[title][name]]
            together = _median([r["shared_share"] for r in runs])
            lines.append(f"| {name} | {_pair(runs, 'ttft')} | {_pair(runs, 'itl')} | {_shown(together, '.1%')} |")
    return lines


def ratios(results: dict[str, dict[str, list[Any]]]) -> list[str]:
    """The claims, each as gatescope over a named peer of the same run; below 1 is better than the peer."""

    def error(title: str, key: str, place: int) -> dict[str, float]:
        return {n: _median([r["errors"][key][place] for r in runs]) for n, runs in results[title].items()}

    each, many = ({n: _median(v) for n, v in results[title].items()} for title in CAPACITY)
    lines = [
        *_claim("CPU per token, an event a packet", each, [(PYTHON, 0.65), ("aiohttp (raw)", 0.75), ("vllm-rs", 1.0)]),
        *_claim("CPU per token, 8 events a packet", many, [("vllm-rs", 2.5)]),
    ]
    for title in ("32 streams", "256 streams"):
        lines += _claim(f"ITL error p99, {title}", error(title, "itl", 1), [("vllm-rs", 0.5)])
        lines += _claim(f"TTFT error median, {title}", error(title, "ttft", 0), [("vllm-rs", 1.0), (PYTHON, 0.1)])
    lines += _claim("TTFT error p99, 256 streams", error("256 streams", "ttft", 1), [("vllm-rs", 0.5)])
    shares = {n: _median([r["delivered_share"] for r in v]) for n, v in results["256 streams"].items()}
    own = error("32 streams, stalled", "itl_own", 1)["gatescope"]
    return [
        *lines,
        f"ITL error p99 of events that were read alone, stalled: {own:.3f} ms (aim 0.2)",
        "delivered / offered load at 256 streams: " + ", ".join(f"{n} {s:.1%}" for n, s in shares.items()),
    ]


def _claim(what: str, values: dict[str, float], aims: list[tuple[str, float]]) -> list[str]:
    """A line for each peer that is there; PYTHON stands for the best tool in Python (bare aiohttp is none)."""
    others = ("gatescope", "vllm-rs", "aiohttp (raw)")
    in_python = {n: v for n, v in values.items() if n not in others and v == v}
    if in_python:
        best = min(in_python, key=lambda n: in_python[n])
        aims = [(best if peer == PYTHON else peer, aim) for peer, aim in aims]
    return [
        f"{what}: {values['gatescope'] / values[peer]:.3f} × {peer} (aim {aim:g})"
        for peer, aim in aims
        if peer in values
    ]


def _pair(runs: list[dict[str, Any]], key: str) -> str:
    return " / ".join(_shown(_median([r[key][place] for r in runs]), ".3g") for place in (0, 1))


def _shown(value: float, form: str) -> str:
    return "–" if value != value else format(value, form)


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _write_inputs(folder: Path) -> None:
    """Prompts in the clients' layouts, and a tokenizer of bytes for those that insist on one."""
    prompts = [f"request {i:05d} of the truth" for i in range(max(SIZES) + 1)]
    with open(folder / "prompts.jsonl", "w") as ours, open(folder / "prompts.aiperf.jsonl", "w") as theirs:
        ours.writelines(json.dumps({"prompt": p}) + "\n" for p in prompts)
        theirs.writelines(json.dumps({"text": p}) + "\n" for p in prompts)
    (folder / "tokenizer").mkdir()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {_printable(b): b for b in range(256)}, "merges": []}
    whole = {"version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level, "decoder": byte_level, "model": model}
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(whole))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 131072}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(about))


def _printable(byte: int) -> str:
    """GPT-2's printable stand-in for a byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in printable else chr(256 + sorted(set(range(256)) - set(printable)).index(byte))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rust", type=Path, help="vllm-rs of a CUDA wheel of vLLM 0.33 or newer")
    parser.add_argument("--vllm", type=Path, help="the interpreter of a vLLM environment")
    parser.add_argument("--aiohttp", type=Path, help="an interpreter that has aiohttp")
    parser.add_argument("--aiperf", type=Path, help="the aiperf command")
    parser.add_argument("--guidellm", type=Path, help="the guidellm command")
    parser.add_argument("--nice", type=int, default=0, help="of server and clients alike; below 0 needs root")
    parser.add_argument("-o", dest="out", type=Path, help="every round's values as JSON")
    a = parser.parse_args()
    clients = [peers.gatescope()]
    clients += [peers.vllm_rs(a.rust)] if a.rust else []
    clients += [peers.vllm_bench(a.vllm)] if a.vllm else []
    clients += [peers.with_aiohttp(way, a.aiohttp) for way in ("upstream", "raw")] if a.aiohttp else []
    clients += [peers.aiperf(a.aiperf)] if a.aiperf else []
    clients += [peers.guidellm(a.guidellm)] if a.guidellm else []
    results = measure(clients, a.rounds, a.nice)
    if a.out:
        a.out.write_text(json.dumps(results, indent=1))
    print("\n".join([*table(results), "", *ratios(results)]))


if __name__ == "__main__":
    main()
