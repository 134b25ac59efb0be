"""What gatescope survives: kills, faults, hostile servers, bad inputs, situations that users
reported, a long queue and a long day.

    uv run python bench/reliability/run.py [--only kills,faults,…]

Each part's result is kept in bench/results/reliability.json; the table shows the latest of every
part. The faults and inputs are those of the test suite, so that what is counted here is what is
checked there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "bench" / "results" / "reliability.json"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
FAULTS = (
    "tests/engine/test_faults.py",
    "tests/engine/test_stopping.py",
    "tests/engine/test_engine.py",
    "tests/backends/test_server.py",
)
EXAMPLES = re.compile(r"(\d+) passing, (\d+) failing, and")
READER = """
import resource, sys, time
from pathlib import Path
from core.experiment import state
from core.rundir import journal

began = time.perf_counter()
state.fold(journal.stream_events(Path(sys.argv[1])))
peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - began, peak_kib / 1024)
"""
Part = dict[str, Any]


def pytest(
    folder: Path, *arguments: str, **variables: str
) -> tuple[str, list[ElementTree.Element]]:
    """What pytest prints, and its test cases."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True
    )
    return done.stdout, list(ElementTree.parse(report).iter("testcase"))


def has_passed(case: ElementTree.Element) -> bool:
    return not any(child.tag in ("failure", "error", "skipped") for child in case)


def kills(folder: Path, wanted: argparse.Namespace) -> Part:
    """SIGKILL at seeded instants, then resume (tests/engine/test_kill.py)."""
    test = "tests/engine/test_kill.py::test_killed_at_any_instant_it_goes_on_where_it_was"
    _, cases = pytest(folder, test, GATESCOPE_KILLS=str(wanted.kills))
    survived = all(map(has_passed, cases))
    count = wanted.kills if survived else "not all"
    return {"row": f"{count} of {wanted.kills}: no finished run lost or changed"}


def faults(folder: Path, wanted: argparse.Namespace) -> Part:
    """Every injected fault of the suite, with its outcome."""
    _, cases = pytest(folder, *FAULTS)
    outcomes = {str(case.get("name")): has_passed(case) for case in cases}
    met = sum(outcomes.values())
    row = f"{met} of {len(outcomes)} faults had the outcome that the tests demand"
    return {"row": row, "outcomes": outcomes}


def hostile(folder: Path, wanted: argparse.Namespace) -> Part:
    """Each attack of the hostile server alone, and the peak memory of its load worker."""
    from support.hostile import ATTACKS, Hostile

    server = Hostile()
    try:
        attacks = {name: _attacked(server.url, name) for name in ATTACKS}
    finally:
        server.stop()
    right = sum(
        a["error"].startswith(ATTACKS[name].error) and bool(a["error"]) == bool(ATTACKS[name].error)
        for name, a in attacks.items()
    )
    most = max(a["worker_mib"] for a in attacks.values())
    least = min(a["worker_mib"] for a in attacks.values())
    row = f"{right} of {len(attacks)} attacks named, the queue went on;"
    row += f" a load worker took {least:.0f} to {most:.0f} MiB"
    return {"row": row, "attacks": attacks}


def _attacked(url: str, name: str) -> Part:
    """A load of one attack and one request after it."""
    from support.hostile import ASKED

    from core.load import client
    from core.load.client import Load
    from core.workload.dataset import Prompt

    most = 0.0
    prompts = [Prompt(name, name), Prompt("after", "after it")]
    load = Load(
        url,
        "m",
        "001",
        prompts,
        output_len=ASKED,
        max_concurrency=1,
        stall_timeout_s=1.0,
        workers=1,
    )

    async def watched() -> Any:
        nonlocal most
        sending = asyncio.ensure_future(client.run(load, on_done=lambda _: look()))
        while not sending.done():
            look()
            await asyncio.wait({sending}, timeout=0.01)
        return await sending

    def look() -> None:
        nonlocal most
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if "core.load.worker" in child.cmdline():
                    most = max(most, child.memory_info().rss / 2**20)

    first, after = asyncio.run(watched())
    assert not after.error, f"after {name}: {after.error}"
    return {
        "error": first.error,
        "worker_mib": most,
        "seconds": (first.t_done_ns - first.t_start_ns) / 1e9,
    }


def inputs(folder: Path, wanted: argparse.Namespace) -> Part:
    """Every parser, with inputs that Hypothesis makes up."""
    flags = ("-m", "fuzz", "tests/fuzz", "--hypothesis-show-statistics")
    printed, cases = pytest(folder, *flags, GATESCOPE_FUZZ="nightly" if wanted.nightly else "bench")
    passing, failing = (
        sum(int(n) for n in column) for column in zip(*EXAMPLES.findall(printed), strict=True)
    )
    row = f"{passing:,} inputs to {len(cases)} readers, {failing} crashed or hung"
    return {"row": row, "parsers": {str(c.get("name")): has_passed(c) for c in cases}}


def reports(folder: Path, wanted: argparse.Namespace) -> Part:
    """Every situation of bench/reliability/reports/, and what was seen where it is not as
    expected."""
    from bench.reliability.reports import all_cases

    outcomes = all_cases.outcomes(folder)
    met = sum(not seen for seen in outcomes.values())
    for name, seen in outcomes.items():
        if seen:
            print(f"! {name}: {seen}", file=sys.stderr)
    row = f"{met} of {len(outcomes)} reported situations give what is expected"
    return {"row": row, "outcomes": outcomes}


def queue(folder: Path, wanted: argparse.Namespace) -> Part:
    """many.py."""
    found = _found("many.py", folder / "many", str(wanted.datasets), str(wanted.limit_s))
    return {"row": _queue_row(found), **found}


def _queue_row(found: Part) -> str:
    runs = f"{found['done']:,} of {2 * found['datasets']:,} runs done, {found['failed']} failed"
    row = f"{runs}, in {found['seconds']:.0f} s"
    engine, screen = found["engine_mib"], found["screen_mib"]
    if not engine:  # memory is read every 100 runs
        return row
    return (
        f"{row}; engine {engine[0]:.1f} → {engine[-1]:.1f} MiB"
        f" ({found['engine_slope_mib']:+.2f} per 100 runs), terminal UI"
        f" {screen[0]:.1f} → {screen[-1]:.1f} MiB ({found['screen_slope_mib']:+.2f})"
    )


def day(folder: Path, wanted: argparse.Namespace) -> Part:
    """day.py, and the time and memory that reading its journal takes."""
    found = _found("day.py", folder / "day", str(wanted.hours))
    command = [sys.executable, "-c", READER, str(folder / "day")]
    read = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    found["read_s"], found["reader_mib"] = map(float, read.split())
    memory = found.pop("rss_mib")
    found["engine_mib"] = [memory[len(memory) * hour // 24] for hour in range(24)] + [memory[-1]]
    return {"row": _day_row(found), **found}


def _day_row(found: Part) -> str:
    engine, counts = found["engine_mib"], found["events"]
    return (
        f"{found['hours']:g} h: {found['runs']} runs, {counts['RequestFinished']:,} requests,"
        f" {counts['Sampled']:,} samples; engine {engine[1]:.1f} → {engine[-1]:.1f} MiB;"
        f" journal {found['journal_mb']:.0f} MB, read in {found['read_s']:.1f} s"
        f" and {found['reader_mib']:.0f} MiB"
    )


def _found(script: str, *arguments: str | Path) -> Part:
    """The JSON object that a script of this folder prints."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    found: Part = json.loads(printed)
    return found


PARTS: dict[str, tuple[str, Callable[[Path, argparse.Namespace], Part]]] = {
    "kills": ("engine killed at seeded instants, then resumed", kills),
    "faults": ("faults injected", faults),
    "hostile": ("hostile server", hostile),
    "inputs": ("bad inputs", inputs),
    "reports": ("situations that users reported", reports),
    "queue": ("datasets × 2 backends in one queue", queue),
    "day": ("a day under a clock that jumps", day),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--limit-s", type=float, default=3600.0, help="longest time for the queue")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--nightly", action="store_true", help="give each reader 10,000 bad inputs")
    wanted = parser.parse_args()
    kept: dict[str, Part] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in wanted.only.split(","):
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            kept[name] = PARTS[name][1](Path(folder), wanted)
        kept[name] |= {
            "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
            "took_s": time.monotonic() - begun,
        }
        kept[name]["machine"] = f"{os.cpu_count()} cores, Python {platform.python_version()}"
        KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    print("| what | result |\n|---|---|")
    for name, (title, _) in PARTS.items():
        if name in kept:
            print(f"| {title} | {kept[name]['row']} |")


if __name__ == "__main__":
    main()
