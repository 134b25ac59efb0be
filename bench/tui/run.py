"""What the terminal UI costs: first paint against a minimal Textual app, opening a long journal,
how soon a run's first figures are on screen, and CPU and memory while it follows runs.

    uv run python bench/tui/run.py [paint] [opening] [figures] [cpu] [memory]

Every program runs on a pseudo-terminal of 140×45; this script reads and counts its output. A
measurement with an aim says whether it was met; exit code 1 if one was not.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import socket
import statistics
import struct
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))
from core.experiment import control, events, state
from core.experiment.events import AnyEvent, LiveImbalance, RunFigures, Sampled, ServerLoad
from core.experiment.plan import Run
from core.rundir.journal import read_events

ROUNDS = 7
MINIMAL = """
from textual.app import App
from textual.widgets import Static

class Minimal(App):
    def compose(self):
        yield Static("gatescope")

Minimal().run()
"""
ATTACH = """
import sys
from pathlib import Path
from tui.start import attach

attach(Path(sys.argv[1]))
"""
REQUESTS = 100_000
FOLLOWED_S = 20.0
GROWN = 2000  # runs
CLI = "import sys; from core import cli; sys.exit(cli.main(sys.argv[1:]))"
STARTS = 3  # of a run whose first figures are waited for
CONFIG = """
[experiment]
engine = "builtin"
datasets = "*.jsonl"
num_prompts = 4
output_len = 900
warmup_requests = 0
[[backends]]
name = "baseline"
port = 0
"""
# Live's rows: n, then figures.
ROWS = {name: re.compile(rb"%s +\d[\d,]* +[\d.]+" % name.encode()) for name in ("TTFT", "ITL")}
ESCAPES = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")


class Program:
    """A Python program on a terminal of its own."""

    def __init__(self, code: str, *arguments: str) -> None:
        self.began = time.perf_counter()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parents[2])}
            os.execv(sys.executable, [sys.executable, "-c", code, *arguments])
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 45, 140, 0, 0))
        self.written = 0

    def until(self, shown: bytes, patience_s: float = 30.0) -> float:
        """Seconds from the start until `shown` was written."""
        seen = b""
        while shown not in seen:
            seen = (seen + self._read(patience_s))[-65536:]
        return time.perf_counter() - self.began

    def press(self, key: bytes) -> None:
        os.write(self.fd, key)

    def rows(self, wanted: dict[str, re.Pattern[bytes]]) -> dict[str, int]:
        """When each of these was first on the screen (ns)."""
        seen, at = b"", dict[str, int]()
        while missing := [name for name in wanted if name not in at]:
            seen += self._read(30.0)
            plain = ESCAPES.sub(b"", seen)
            at |= {n: time.perf_counter_ns() for n in missing if wanted[n].search(plain)}
        return at

    def drain(self, seconds: float) -> None:
        """Read what it writes for `seconds`."""
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            self._read(left, at_least=False)

    def _read(self, patience_s: float, *, at_least: bool = True) -> bytes:
        ready, _, _ = select.select([self.fd], [], [], patience_s)
        if not ready:
            if at_least:
                raise TimeoutError("the program wrote nothing")
            return b""
        data = os.read(self.fd, 65536)
        self.written += len(data)
        return data

    def end(self) -> None:
        psutil.Process(self.pid).kill()
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def first_paint(code: str, *arguments: str) -> float:
    program = Program(code, *arguments)
    try:
        return program.until(b"gatescope")
    finally:
        program.end()


def alternated(ours: Callable[[], float], peer: Callable[[], float]) -> tuple[float, float]:
    """Medians of runs that took turns, so that both meet the same machine."""
    pairs = [(ours(), peer()) for _ in range(ROUNDS)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def journal(requests: int, per_run: int) -> list[AnyEvent]:
    """The events of `requests` finished requests in runs of `per_run`, with a sample for every
    tenth request, and one more run queued."""
    at = 1.7e9
    runs = [
        Run("baseline", f"{n:05d}", f"{n:05d}", f"datasets/{n:05d}_0.5.jsonl")
        for n in range(requests // per_run + 1)
    ]
    made: list[AnyEvent] = [
        events.ExperimentStarted(at=at, name="bench", engine="builtin", runs=runs)
    ]
    made.append(
        events.BackendStarting(at=at, backend="baseline", port=1, pid=1, command=["x"], log="x")
    )
    made.append(events.BackendReady(at=at, backend="baseline", seconds=1.0, ran={}))
    for number, run in enumerate(runs[:-1]):
        made.append(events.RunStarted(at=at + number, run=run.id, requests=per_run))
        for index in range(per_run):
            made.append(request(run.id, index, at + number))
            if index % 10 == 0:
                made.append(sample(run.id, index, at + number + index / per_run))
        made.append(finished(run.id, per_run, at + number + 1))
    return made


def request(run: str, index: int, at: float) -> AnyEvent:
    return events.RequestFinished(
        at=at,
        run=run,
        index=index,
        input_tokens=100,
        output_tokens=50,
        ttft_ms=20.0 + index % 7,
        tpot_ms=10.0,
        itl_ms=9.0,
        e2e_ms=500.0,
    )


def sample(run: str, index: int, at: float) -> AnyEvent:
    return Sampled(
        at=at,
        backend="baseline",
        run=run,
        sent=index + 32,
        first_tokens=index + 20,
        output_tokens=index * 50,
        finished=index,
        ttft=latency(index + 20),
        itl=latency(index * 50),
        arrived=events.Arrived(ttft_ms=20.0 + index % 7, itl_ms=9.0 + index % 3),
        server=ServerLoad(running=30, waiting=index % 5, kv_cache=0.5, preemptions=0),
        imbalance=LiveImbalance(
            cv=0.5 + index % 9 / 10, excess_cv=0.3, rank_imbalance=1.4, layer=3, expert=1, share=0.2
        ),
    )


def latency(n: int) -> events.Latency:
    return events.Latency(n=n, mean=20.0, p50=20.0, p90=25.0, p99=None, max=27.0)


def finished(run: str, requests: int, at: float) -> AnyEvent:
    figures = RunFigures(
        completed=requests,
        failed=0,
        duration_s=1.0,
        output_throughput=1000.0 + hash(run) % 100,
        latencies=dict.fromkeys(("ttft", "tpot", "itl", "e2e"), latency(requests)),
        score=0.5,
        cv=0.5 + hash(run) % 100 / 100,
        aggregated_cv=0.2,
        excess_cv=0.3,
    )
    return events.RunFinished(
        at=at, run=run, figures=figures, result="baseline/results_json/x.json"
    )


def write(run_dir: Path, made: list[AnyEvent]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "events.jsonl").write_bytes(b"".join(events.encode(e) + b"\n" for e in made))


def opening(place: Path, requests: int, per_run: int) -> None:
    run_dir = place / f"long-{per_run}"
    write(run_dir, journal(requests, per_run))
    began = time.perf_counter()
    state.fold(read_events(run_dir))
    folded = time.perf_counter() - began
    program = Program(ATTACH, str(run_dir))
    shown = program.until(b"run " + str(requests // per_run).encode())
    program.end()
    took = f"folded in {folded:.2f} s, on screen after {shown:.2f} s"
    print(f"{requests:,} requests in runs of {per_run:,}: {took}")


def following(place: Path) -> bool:
    """CPU and output of the UI while a journal of 50 runs grows by 20 requests and a sample every
    second."""
    run_dir = place / "followed"
    write(run_dir, journal(1500, 30))
    with socket.socket(socket.AF_UNIX) as engine:  # so that the run counts as live
        engine.bind(str(run_dir / control.SOCKET))
        engine.listen(4096)
        return _idle_and_busy(run_dir)


def _idle_and_busy(run_dir: Path) -> bool:
    program = Program(ATTACH, str(run_dir))
    program.until(b"running")
    program.drain(3.0)
    used, written = _cpu(program, FOLLOWED_S / 2)
    print(f"idle: {used:.1f} % of a core, {written:.1f} kB/s to the terminal")
    stop = threading.Event()
    writer = threading.Thread(target=_grow, args=(run_dir, stop))
    writer.start()
    program.drain(2.0)
    used, written = _cpu(program, FOLLOWED_S)
    print(f"following a run: {written:.1f} kB/s to the terminal")
    stop.set()
    writer.join()
    program.end()
    return aim("% of a core, following a run at 2 Hz, 140×45", used, 1.5)


def _cpu(program: Program, seconds: float) -> tuple[float, float]:
    """Percent of a core, and kB/s written to the terminal."""
    process = psutil.Process(program.pid)
    before, written = process.cpu_times(), program.written
    program.drain(seconds)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return 100 * used / seconds, (program.written - written) / seconds / 1e3


def growing(place: Path) -> bool:
    """Resident memory of the UI while runs end, forty a second."""
    made = journal((GROWN + 1) * 30, 30)
    each = (len(made) - 3) // (GROWN + 1)
    run_dir = place / "growing"
    write(run_dir, made[:3])
    program = Program(ATTACH, str(run_dir))
    program.until(b"gatescope")
    process, held = psutil.Process(program.pid), {}
    with open(run_dir / "events.jsonl", "ab", buffering=0) as file:
        for run in range(GROWN + 1):
            part = made[3 + run * each : 3 + (run + 1) * each]
            file.write(b"".join(events.encode(e) + b"\n" for e in part))
            program.drain(0.025)
            if run in (GROWN // 4, GROWN):
                program.drain(3.0)
                held[run] = process.memory_info().rss / 2**20
    program.end()
    (first, before), (last, after) = held.items()
    print(f"memory: {before:.1f} MiB after {first:,} runs, {after:.1f} after {last:,}")
    return aim("MiB for 100 runs", 100 * (after - before) / (last - first), 0.1)


def first_figures(place: Path) -> dict[str, float]:
    """Seconds from a run's first token to its TTFT and its ITL on the screen, the longest of
    STARTS; no request has ended by then."""
    late = dict.fromkeys(ROWS, 0.0)
    for number in range(STARTS):
        folder = place / f"figures-{number}"
        folder.mkdir()
        (folder / "experiments.toml").write_text(CONFIG)
        texts = [f'{{"id": "q{i}", "text": "question {i}"}}\n' for i in range(4)]
        (folder / "001_0.5.jsonl").write_text("".join(texts))
        run_dir = folder / "run"
        config = str(folder / "experiments.toml")
        program = Program(CLI, "--config", config, "--out", str(run_dir))
        program.until(b"not started")
        program.press(b"r")
        at = program.rows(ROWS)
        stamps = run_dir / "baseline" / "requests" / "001.npz"
        while not stamps.exists():
            program.drain(0.2)
        program.until(b"finished")
        program.end()
        with np.load(stamps) as requests:
            first, ended = requests["t_first_ns"].min(), requests["t_done_ns"].min()
        assert max(at.values()) < ended, "a request had ended"
        late = {name: max(late[name], (at[name] - first) / 1e9) for name in late}
    return late


def _grow(run_dir: Path, stop: threading.Event) -> None:
    run = "baseline/00050"
    with open(run_dir / "events.jsonl", "ab", buffering=0) as file:
        file.write(events.encode(events.RunStarted(run=run, requests=5000, output_len=50)) + b"\n")
        for second in range(int(FOLLOWED_S * 3)):
            for index in range(20):
                file.write(events.encode(request(run, second * 20 + index, time.time())) + b"\n")
            file.write(events.encode(sample(run, second * 20, time.time())) + b"\n")
            if stop.wait(1.0):
                return


def paint(place: Path) -> bool:
    write(place / "small", journal(90, 30))
    ours, minimal = alternated(
        lambda: first_paint(ATTACH, str(place / "small")), lambda: first_paint(MINIMAL)
    )
    print(f"first paint: {ours:.3f} s; minimal app {minimal:.3f} s, medians of {ROUNDS}")
    return aim("first paint over a minimal app's", ours / minimal, 1.4)


def opening_long(place: Path) -> bool:
    opening(place, REQUESTS, 30)
    opening(place, REQUESTS, 5000)
    return True


def figures(place: Path) -> bool:
    late = first_figures(place)
    met = [aim(f"s from the first token to {name} on screen", late[name], 2.0) for name in late]
    return all(met)


def aim(what: str, value: float, most: float) -> bool:
    print(f"{what}: {value:.2f}; aim: at most {most:g}{'' if value <= most else ': MISSED'}")
    return value <= most


MEASUREMENTS: dict[str, Callable[[Path], bool]] = {
    "paint": paint,
    "opening": opening_long,
    "figures": figures,
    "cpu": following,
    "memory": growing,
}


def main(chosen: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        met = [MEASUREMENTS[name](Path(folder)) for name in chosen or MEASUREMENTS]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
