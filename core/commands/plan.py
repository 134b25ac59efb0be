"""`gatescope plan`: from a pilot's run directory, the experiment that finds an effect of a given
size, and how long it takes."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands import arguments as arg
from core.errors import NoDataError

if TYPE_CHECKING:
    from core.analysis.comparand import Comparand
    from core.analysis.pilot import Design, Pilot

METRICS = ("mean_ttft_ms", "mean_tpot_ms", "output_throughput")
ROWS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="run directory or sweep that is the pilot"
    )
    parser.add_argument(
        "--effect",
        type=arg.percentage,
        required=True,
        metavar="2%",
        help="the difference of two backends that is to be found with 80 %% power",
    )
    parser.add_argument(
        "--metric", choices=METRICS, help="default: the metric that the pilot was registered for"
    )


def run(arguments: argparse.Namespace) -> int:
    from core.analysis import comparand, pilot, results
    from core.rundir import journal, registered

    path: Path = arguments.run_dir
    cells = comparand.read(path)
    asked = registered.read(cells[0].path).first
    metric = arguments.metric or (asked.metric if asked else "mean_tpot_ms")
    name = results.NAMES[metric][0]
    pairs = [(a, b) for a, b in itertools.combinations(cells, 2) if _are_a_pair(path, a, b)]
    if not pairs:
        raise NoDataError(f"{path}: results of two backends are needed to plan a comparison")
    for reference, other in pairs:
        pair = (reference.name, other.name)
        told = (
            event
            for own in dict.fromkeys(cell.path for cell in (reference, other))
            for event in journal.stream_events(own)
            if _backend(event) in (reference.backend, other.backend)
        )
        sides = (reference.group.by_start(metric), other.group.by_start(metric))
        found = pilot.of_sides(*sides, *pilot.seconds(told))
        if found is None:
            raise NoDataError(
                f"{path}: {name} of {pair[1]} and {pair[0]}: too few runs to tell noise from an"
                " effect; take two datasets or more at both"
            )
        made = pilot.designs(found, arguments.effect / 100)
        lines = _lines(f"{name}, {pair[1]} against {pair[0]}", arguments.effect, found, made)
        print("\n".join(lines))
    print("set starts and repeats in [experiment]; choose datasets with --only", file=sys.stderr)
    return 0


def _are_a_pair(path: Path, one: Comparand, other: Comparand) -> bool:
    """Whether they are two backends with the same settings."""
    from core.rundir import sweep

    if one.backend == other.backend or not sweep.is_sweep(path):
        return one.backend != other.backend
    asked = sweep.read(path)
    return asked.cell(one.name).settings == asked.cell(other.name).settings


def _backend(event: object) -> str:
    """The backend that an event is about; empty where it is about none."""
    run: str = getattr(event, "run", "")
    found: str = getattr(event, "backend", "") or run.partition("/")[0]
    return found


def _lines(title: str, effect: float, found: Pilot, made: Sequence[Design]) -> Iterator[str]:
    yield f"{title}: to find a difference of {effect:g} % with 80 % power (t test on starts, 5 %)"
    restart = f"a restart moves it by {100 * found.restart:.2g} % (SD"
    if found.restart_from:
        yield f"  {restart}, of the pilot's {found.restart_from} starts)"
    else:
        yield f"  {restart} seen elsewhere: the pilot has one start each)"
    yield f"  a run varies by {100 * found.noise:.2g} % (SD, of {found.noise_from} runs)"
    yield f"  a start of both takes {found.start_s:.1f} s, a run of both {found.run_s:.1f} s"
    if not made:
        yield "  no design of up to 1000 starts finds it"
        return
    yield f"  {'starts each':>11}{'datasets':>10}{'repeats':>9}{'hours':>9}"
    cheapest = min(made, key=lambda design: design.hours)
    for design in made[:ROWS]:
        note = "   cheapest" if design is cheapest else ""
        cells = f"{design.starts:>11}{design.datasets:>10}{design.repeats:>9}"
        yield f"  {cells}{design.hours:>9.2g}{note}"
