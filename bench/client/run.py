"""gatescope's load client against its peers: capacity, accuracy, and a stalled worker.

    python bench/client/run.py --rust vllm-rs --sglang FOLDER --vllm PYTHON --aiohttp PYTHON \\
        --aiperf aiperf --guidellm guidellm

The truth server has one core to itself, and each client (its whole process tree) another one.
Clients take turns in every round, so that other work on the machine affects all alike; the tables
show medians over rounds. Peers that take ten seconds or more to start run in the first round only,
and only what an aim needs. It takes about 14 minutes with all peers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.client import memory, peers
from bench.client.aims import EACH, MANY, Results, aims, median
from bench.client.errors import Delivery, Errors, delivery, errors
from bench.client.peers import Peer, Task

HERE = Path(__file__).parent
TTFT_MS, ITL_MS = 50.0, 10.0
TIMED = {"named": True, "firehose": False, "ttft_ms": TTFT_MS, "itl_ms": ITL_MS, "jitter": 0.2}
STALL_S, STALL_EVERY_S = 0.020, 0.100
SERVER_CORE, CLIENT_CORE = 0, 1
CAPACITY = {EACH: 1, MANY: 8}  # title: events in one send
SIZES = (256, 2560)  # far apart: ten seconds of start-up vary by more than 1e5 tokens cost
CAPACITY_STREAMS, CAPACITY_TOKENS = 64, 128


@dataclass(frozen=True)
class Scenario:
    """What the server does, and the requests it gets."""

    schedule: dict[str, Any]
    requests: int
    concurrency: int
    tokens: int
    stalled: bool = False
    for_slow: bool = True  # also run by peers that are slow to start


SCENARIOS = {
    "32 streams": Scenario(TIMED, 160, 32, 64),
    "256 streams": Scenario(TIMED, 1024, 256, 64),
    "32 streams, stalled": Scenario(TIMED, 160, 32, 64, stalled=True, for_slow=False),
    "1000 streams": Scenario(
        {**TIMED, "ttft_ms": 500.0, "itl_ms": 100.0}, 1000, 1000, 20, for_slow=False
    ),
}


@dataclass(frozen=True)
class Ran:
    """One run of one client."""

    cpu_s: float
    start_to_first_request_s: float
    failed: int  # requests that the client does not report completely
    errors: Errors
    delivery: Delivery | None  # None: no schedule to keep


@dataclass(frozen=True)
class Capacity:
    """CPU seconds per 1e6 tokens, and the share of events that were read with a later one."""

    cpu_s: float
    shared_share: float


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
        urllib.request.urlopen(
            self.url + "/control", json.dumps({**fields, "reset": True}).encode()
        ).close()

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


def run(peer: Peer, server: Server, folder: Path, asked: Scenario, nice: int) -> Ran:
    """Run one client on one scenario."""
    server.control(**asked.schedule)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        prompts = folder / "prompts.jsonl"
        task = Task(server.url, prompts, asked.requests, asked.concurrency, asked.tokens, Path(out))
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
        if asked.stalled:
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
        failed=asked.requests - found.requests,
        errors=found,
        delivery=None if asked.schedule["firehose"] else delivery(truth, asked.concurrency),
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


def capacity(peer: Peer, server: Server, folder: Path, burst: int, nice: int) -> Capacity:
    """CPU time of the client's process tree: the slope between two run sizes, which leaves out
    start-up.

    NaN if it is not above 0: the start-ups differed by more than the tokens cost.
    """
    asked = [
        Scenario({**TIMED, "firehose": True, "burst": burst}, n, CAPACITY_STREAMS, CAPACITY_TOKENS)
        for n in SIZES
    ]
    small, large = (run(peer, server, folder, each, nice) for each in asked)
    tokens = (SIZES[1] - SIZES[0]) * CAPACITY_TOKENS
    cpu_s = (large.cpu_s - small.cpu_s) / tokens * 1e6
    return Capacity(cpu_s if cpu_s > 0 else math.nan, large.errors.shared_share)


def measure(clients: list[Peer], rounds: int, nice: int) -> Results:
    """Results by scenario, then client: one value a round."""
    results: Results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_inputs(folder)
        server = Server(nice)
        try:
            for number in range(rounds):
                for peer in clients if number % 2 == 0 else clients[::-1]:
                    if number == 0 or not peer.is_slow:
                        _round(peer, server, folder, nice, results)
                        print(f"round {number + 1} of {rounds}: {peer.name}", file=sys.stderr)
        finally:
            server.stop()
    return results


def _round(peer: Peer, server: Server, folder: Path, nice: int, results: Results) -> None:
    for title, scenario in SCENARIOS.items():
        if scenario.for_slow or not peer.is_slow:
            ran = asdict(run(peer, server, folder, scenario, nice))
            results.setdefault(title, {}).setdefault(peer.name, []).append(ran)
    for title, burst in CAPACITY.items():
        if title == EACH or not peer.is_slow:
            cost = asdict(capacity(peer, server, folder, burst, nice))
            results.setdefault(title, {}).setdefault(peer.name, []).append(cost)


# --- the tables ---


def tables(results: Results) -> list[str]:
    """Markdown tables: a line per client, medians over rounds."""
    return [
        *_costs(results),
        *(line for title in SCENARIOS for line in _accuracy(results[title], title)),
    ]


def _costs(results: Results) -> list[str]:
    lines = [
        "CPU s / 1e6 tokens (in brackets: events that were read together with a later one)",
        "",
        f"| client | {EACH} | {MANY} | start to first request, s |",
        "|---|---|---|---|",
    ]
    for name in results[EACH]:
        costs = [_cost(results[title].get(name, [])) for title in CAPACITY]
        starts = median([r["start_to_first_request_s"] for r in results["32 streams"][name]])
        lines.append(f"| {name} | {costs[0]} | {costs[1]} | {starts:.2f} |")
    return lines


def _cost(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "–"
    cpu, shared = (median([r[key] for r in runs]) for key in ("cpu_s", "shared_share"))
    return f"{_shown(cpu, '.2f')} ({_shown(shared, '.0%')})"


def _accuracy(clients: dict[str, list[dict[str, Any]]], title: str) -> list[str]:
    lines = [
        "",
        f"{title}: absolute errors in ms, median / p99; load: share of the offered load,"
        " client × server",
        "",
        "| client | TTFT | ITL | ITL of events read alone | events read together | load | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in clients.items():
        found = [r["errors"] for r in runs]
        pairs = " | ".join(_pair(found, key) for key in ("ttft", "itl", "itl_own"))
        together = _shown(median([r["shared_share"] for r in found]), ".1%")
        load = " × ".join(
            f"{median([r['delivery'][side] for r in runs]):.1%}" for side in ("client", "server")
        )
        lines.append(
            f"| {name} | {pairs} | {together} | {load} | {max(r['failed'] for r in runs)} |"
        )
    return lines


def _pair(runs: list[dict[str, Any]], key: str) -> str:
    return " / ".join(_shown(median([r[key][place] for r in runs]), ".3g") for place in (0, 1))


def _shown(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _machine(load: float, stolen_s: float, elapsed_s: float) -> str:
    """The machine and its other load: load average before and after, and the share of time that
    the host of a virtual machine gave to others."""
    stolen = (psutil.cpu_times().steal - stolen_s) / (elapsed_s * (os.cpu_count() or 1))
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    loads = f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    return f"{os.cpu_count()} cores, {system}, {loads}, {stolen:.2%} of the cores' time stolen"


def _write_inputs(folder: Path) -> None:
    """Write the prompts in the clients' layouts, and a byte tokenizer for those that need one."""
    prompts = [f"request {i:05d} of the truth" for i in range(max(SIZES) + 1)]
    with (
        open(folder / "prompts.jsonl", "w") as ours,
        open(folder / "prompts.aiperf.jsonl", "w") as theirs,
    ):
        ours.writelines(json.dumps({"prompt": p}) + "\n" for p in prompts)
        theirs.writelines(json.dumps({"text": p}) + "\n" for p in prompts)
    (folder / "tokenizer").mkdir()
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    model = {"type": "BPE", "vocab": {_printable(b): b for b in range(256)}, "merges": []}
    whole = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": model,
    }
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(whole))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 131072}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(about))


def _printable(byte: int) -> str:
    """GPT-2's printable stand-in for a byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + sorted(set(range(256)) - set(printable)).index(byte))


def _clients(a: argparse.Namespace) -> list[Peer]:
    clients = [peers.gatescope()]
    if a.rust:
        clients.append(peers.vllm_rs(a.rust))
    if a.sglang:
        clients.append(peers.sglang_rs(a.sglang))
    if a.vllm:
        clients.append(peers.vllm_bench(a.vllm))
    if a.aiohttp:
        clients += [peers.with_aiohttp(way, a.aiohttp) for way in ("upstream", "raw")]
    if a.aiperf:
        clients.append(peers.aiperf(a.aiperf))
    if a.guidellm:
        clients.append(peers.guidellm(a.guidellm))
    return clients


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rust", type=Path, help="vllm-rs of a CUDA wheel of vLLM 0.33 or newer")
    parser.add_argument("--sglang", type=Path, help="the folder of _bench.*.so of sglang's wheel")
    parser.add_argument("--vllm", type=Path, help="the interpreter of a vLLM environment")
    parser.add_argument("--aiohttp", type=Path, help="an interpreter that has aiohttp")
    parser.add_argument("--aiperf", type=Path, help="the aiperf command")
    parser.add_argument("--guidellm", type=Path, help="the guidellm command")
    parser.add_argument(
        "--nice", type=int, default=0, help="niceness of server and clients; below 0 needs root"
    )
    parser.add_argument(
        "-o", dest="out", type=Path, help="write every round's values to this JSON file"
    )
    a = parser.parse_args()
    clients = _clients(a)
    load, stolen_s, began = os.getloadavg()[0], psutil.cpu_times().steal, time.monotonic()
    results = measure(clients, a.rounds, a.nice)
    machine = _machine(load, stolen_s, time.monotonic() - began)
    if a.out:
        a.out.write_text(json.dumps(results, indent=1))
    claims = aims(results, memory.growth(memory.sampled()))
    head = ["| aim | measured | limit | met |", "|---|---|---|---|"]
    print("\n".join([machine, "", *tables(results), "", *head, *(aim.row() for aim in claims)]))
    print(f"\n{sum(aim.is_met for aim in claims)} of {len(claims)} aims met")


if __name__ == "__main__":
    main()
