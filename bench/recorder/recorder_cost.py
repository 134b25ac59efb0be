"""What recording the router costs: TPOT and tok/s of servers with and without the recorder.

    PYTHONPATH=. python bench/recorder/recorder_cost.py --model FOLDER --out DIR

Each variant in `--variants` is a server of its own. They start in the order given; name one twice
to start it twice:

    off       vLLM as it is
    on        with gatescope's recorder
    metrics   as `gatescope record --metrics-port` starts it, scraped once a second
    control   off again: by how much two equal servers differ
    eager     off, without CUDA graphs
    naive     eager, with logging as it is usually added by hand

Each server gets one unmeasured round of `--requests` simultaneous prompts, prompts of the sizes for
which kernels are compiled, and `--rounds` measured rounds; all servers get the same. The script
needs only the packages of vLLM's own environment, so it can run there. Results go to
DIR/recorder_cost.json after each server, and a second call with the same DIR adds to them. A server
is not started if it would not fit into `--budget-s`, judged by the time that the last one took.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from core.backends import nvml, vllm
from core.backends import server as servers
from core.backends.server import Server
from core.experiment.tables import Backend, Model
from core.load import client, metrics
from core.load.client import Load
from core.routing import folder as gate_folder
from core.workload.dataset import Prompt

NAIVE = Path(__file__).parent / "naive"
ROOT = Path(__file__).parents[2]
VARIANTS = ("off", "on", "metrics", "control", "eager", "naive")
LETTERS = "etaoinshrdlu"


def main() -> int:
    """Run the servers one after the other and print the table; return 1 if a server failed."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    began, results, failed = time.monotonic(), _earlier(options.out), 0
    for variant in options.variants:
        # Later starts are faster, because they find compiled kernels.
        likely = results[-1]["server_s"] if results else 0.0
        if time.monotonic() - began + likely > options.budget_s:
            _tell(f"{variant}: not started: it would exceed {options.budget_s} s")
            continue
        _tell(f"{variant}: starting")
        try:
            results.append(
                asyncio.run(_measured(options, variant, options.out / f"{len(results)}-{variant}"))
            )
        except servers.ServerError as error:
            failed += 1
            _tell(f"{variant}: {error}", *error.log_tail)
        _write(options, results)
    print(_table(results))
    return 1 if failed else 0


def _earlier(out: Path) -> list[dict[str, Any]]:
    """The servers that earlier calls measured."""
    file = out / "recorder_cost.json"
    return list(json.loads(file.read_text())["servers"]) if file.exists() else []


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--python", default=sys.executable, help="interpreter of the vLLM environment (this one)")
    add("--model", required=True, help="a folder with config.json and a tokenizer")
    add("--load-format", default="auto", help='"dummy": random weights')
    add("--tp", type=int, default=1)
    add("--variants", type=_variants, default=["off", "on", "control", "naive"])
    add("--rounds", type=int, default=5)
    add("--requests", type=int, default=32, help="simultaneous prompts in a round")
    add("--input-words", type=int, default=96)
    add("--output-len", type=int, default=128)
    add("--max-model-len", type=int, default=2048)
    add("--moe-backend", default="", help="default: vLLM's choice")
    add(
        "--extra-arg",
        action="append",
        default=[],
        help="passed to the server unchanged; write --extra-arg=--flag",
    )
    add("--env", action="append", default=[], metavar="KEY=VALUE")
    add("--start-s", type=float, default=400.0, help="longest wait for a server")
    add(
        "--budget-s",
        type=float,
        default=540.0,
        help="start no server that would end later if it took as long as the last one",
    )
    add("--out", type=Path, required=True)
    return parser.parse_args()


def _variants(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(VARIANTS):
        raise argparse.ArgumentTypeError(f"unknown {sorted(unknown)}; known: {', '.join(VARIANTS)}")
    return names


async def _measured(options: argparse.Namespace, variant: str, folder: Path) -> dict[str, Any]:
    """Start the variant's server, send its rounds and stop it; return everything measured."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    backend, logs = _backend(options, variant, folder)
    model = Model(
        id=options.model, max_model_len=options.max_model_len, load_format=options.load_format
    )
    launch = vllm.launch(backend, model, logs, 0)
    scraped = _free_port() if variant == "metrics" else 0
    server = servers.start(
        variant,
        [*_record(folder, scraped), *launch.command] if scraped else launch.command,
        port=backend.port,
        api_key="bench",
        log=folder / "server.log",
        env=launch.env,
    )
    try:
        ready_s = await server.wait_ready(
            options.start_s, lambda phase: _tell(f"{variant}: {phase}")
        )
        ran = vllm.ran(await server.version(), server.log)
        _tell(f"{variant}: ready after {ready_s:.0f} s")
        unmeasured = await _round(options, server, 0)
        unmeasured["tokens"] += await _warm_up(
            options, server, vllm.warmup_input_lens(backend, model)
        )
        async with _scraping(scraped) as scrapes:
            numbers = range(1, options.rounds + 1)
            rounds = [await _round(options, server, number) for number in numbers]
        if logs := folder / "gate_logs" if scraped else logs:
            await _wait_for(logs, sum(row["tokens"] for row in [unmeasured, *rounds]))
    finally:
        server.stop()
    return {
        "variant": variant,
        "command": launch.command,
        "ran": ran,
        "ready_s": ready_s,
        "server_s": time.monotonic() - began,
        "unmeasured": unmeasured,
        "rounds": rounds,
        "scrapes": len(scrapes),
        "gate_log": _logged(logs) if logs else None,
    }


def _backend(
    options: argparse.Namespace, variant: str, folder: Path
) -> tuple[Backend, Path | None]:
    env = {"PYTHONPATH": _path_without_us(), **dict(pair.split("=", 1) for pair in options.env)}
    if variant == "naive":
        path = filter(None, [str(NAIVE), env["PYTHONPATH"]])
        env |= {"NAIVE_GATE_LOGS": str(folder / "naive_logs"), "PYTHONPATH": os.pathsep.join(path)}
    backend = Backend(
        name=variant,
        port=_free_port(),
        tensor_parallel=options.tp,
        max_num_batched_tokens=max(2048, options.max_model_len),
        max_num_seqs=options.requests,
        moe_backend=options.moe_backend,
        enforce_eager=variant in ("eager", "naive"),
        python=options.python,
        extra_args=options.extra_arg,
        env=env,
    )
    if variant == "metrics":  # made by `gatescope record`, and this checkout must be on its path
        with_us = os.pathsep.join(filter(None, [str(ROOT), env["PYTHONPATH"]]))
        env["PYTHONPATH"] = with_us
        return backend, None
    if variant != "on":
        return backend, None
    logs = (folder / "gate_logs").resolve()
    logs.mkdir()
    return backend, logs


def _record(folder: Path, port: int) -> list[str]:
    """What stands before the server's own command."""
    program = [sys.executable, "-P", "-m", "core.cli", "record", "--out", str(folder.resolve())]
    return [*program, "--metrics-port", str(port), "--"]


@contextlib.asynccontextmanager
async def _scraping(port: int) -> AsyncIterator[list[int]]:
    """Scrapes once a second, if there is a port; the bytes of each."""
    got: list[int] = []

    async def scrape() -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            while True:
                said = await client.get(f"http://127.0.0.1:{port}/metrics")
                got.append(len(said.raise_for_status().content))
                await asyncio.sleep(1)

    task = asyncio.ensure_future(scrape() if port else asyncio.sleep(0))
    try:
        yield got
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _path_without_us() -> str:
    """PYTHONPATH without this checkout, which is on it for the load workers: vLLM must find only
    what it would find without us."""
    ours = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(
        entry for entry in ours if entry and Path(entry).resolve() != ROOT.resolve()
    )


async def _warm_up(options: argparse.Namespace, server: Server, lens: Sequence[int]) -> int:
    """Send one request after the other; return how many tokens the server computed."""
    if lens:
        load = _load(options, server, "warmup", [Prompt(id="0", text="warm up")] * len(lens))
        await client.run(replace(load, input_len=lens, output_len=1, max_concurrency=1))
    return sum(lens)


def _load(
    options: argparse.Namespace, server: Server, label: str, prompts: Sequence[Prompt]
) -> Load:
    return Load(server.base_url, options.model, label, prompts, api_key=server.api_key, workers=1)


async def _round(options: argparse.Namespace, server: Server, number: int) -> dict[str, float]:
    """Send one batch of prompts, the same for every variant."""
    draw = random.Random(number)
    prompts = tuple(
        Prompt(id=str(n), text=_text(draw, options.input_words)) for n in range(options.requests)
    )
    load = _load(options, server, f"{number:03d}", prompts)
    figures = metrics.summarise(await client.run(replace(load, output_len=options.output_len)))
    if figures.completed < options.requests:
        raise servers.ServerError(
            f"{options.requests - figures.completed} requests failed", server.log_tail()
        )
    assert figures.median_tpot_ms is not None
    assert figures.median_ttft_ms is not None
    assert figures.total_input_tokens is not None
    return {
        "tpot_ms": figures.median_tpot_ms,
        "ttft_ms": figures.median_ttft_ms,
        "output_tok_s": figures.output_throughput or 0.0,
        "tokens": figures.total_input_tokens + figures.total_output_tokens - figures.completed,
    }


def _text(draw: random.Random, words: int) -> str:
    return " ".join("".join(draw.choices(LETTERS, k=draw.randint(2, 9))) for _ in range(words))


async def _wait_for(logs: Path, tokens: float) -> None:
    """Wait until the log holds this many tokens: the writer is a moment behind the answers, and a
    stopping vLLM kills its workers."""
    deadline = time.monotonic() + 10.0
    while gate_folder.read(logs).tokens.sum() < tokens and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


def _logged(folder: Path) -> dict[str, Any]:
    """What the recorder wrote: enough to check that it recorded everything."""
    log = gate_folder.read(folder)
    decode = log.columns["prefill_tokens"] == 0
    return {
        "steps": len(log.tokens),
        "tokens": int(log.tokens.sum()),
        "exact_steps": int(
            (log.loads.sum(axis=2) == log.top_k * log.tokens[:, None]).all(axis=1).sum()
        ),
        "median_decode_step_ms": statistics.median(
            (log.columns["duration_ns"][decode] / 1e6).tolist()
        ),
        "problems": gate_folder.problems(folder),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.gatelog")),
    }


def _write(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    about = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "gpus": [gpu.name for gpu in nvml.seen()],
        "cpus": os.cpu_count(),
        "comparison": _comparison(results),
        "servers": results,
    }
    (options.out / "recorder_cost.json").write_text(json.dumps(about, indent=1, default=str) + "\n")


def _comparison(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per variant: medians over all its rounds, their range, and the change of the medians against
    `off`."""
    found: dict[str, dict[str, Any]] = {}
    for variant in dict.fromkeys(r["variant"] for r in results):
        mine = [r for r in results if r["variant"] == variant]
        entry: dict[str, Any] = {"servers": len(mine)}
        for key in ("tpot_ms", "ttft_ms", "output_tok_s"):
            values = [row[key] for r in mine for row in r["rounds"]]
            entry[key] = {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            }
            entry[key]["server_medians"] = [
                statistics.median(row[key] for row in r["rounds"]) for r in mine
            ]
        found[variant] = entry
    for entry in found.values():
        if "off" in found:
            for key in ("tpot_ms", "output_tok_s"):
                entry[key]["vs_off"] = entry[key]["median"] / found["off"][key]["median"] - 1
    return found


def _table(results: list[dict[str, Any]]) -> str:
    head = f"{'variant':<9}{'servers':>8}{'TPOT ms':>10}{'min – max':>17}{'vs off':>9}"
    lines = [f"{head}{'tok/s':>10}{'vs off':>9}"]
    for variant, entry in _comparison(results).items():
        tpot, rate = entry["tpot_ms"], entry["output_tok_s"]
        lines.append(
            f"{variant:<9}{entry['servers']:>8}{tpot['median']:>10.3f}"
            f"{tpot['min']:>8.3f} –{tpot['max']:>7.3f}{_change(tpot):>9}"
            f"{rate['median']:>10.1f}{_change(rate):>9}"
        )
    for result in results:
        if logged := result["gate_log"]:
            sent = sum(row["tokens"] for row in [result["unmeasured"], *result["rounds"]])
            lines.append(
                f"recorded {logged['tokens']} of {sent} tokens in {logged['steps']} steps,"
                f" {logged['exact_steps']} of them exact;"
                f" problems: {'; '.join(logged['problems']) or 'none'}"
            )
    return "\n".join(lines)


def _change(figure: dict[str, Any]) -> str:
    return f"{figure['vs_off']:+.1%}" if "vs_off" in figure else "–"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tell(*lines: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} " + "\n    ".join(lines), file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
