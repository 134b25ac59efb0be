"""`gatescope plot`: any figure of a run directory, in the terminal and as PNG."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.commands import arguments as arg
from core.errors import FileError, UsageError
from core.plots import labels

if TYPE_CHECKING:
    from core.analysis.results import Results
    from core.analysis.step_sample import StepSample
    from core.plots.figure import Figure
    from core.rundir.selection import Selection

BACKENDS = ("baseline", "all2all")
DOSE = "dose"  # forced routing, which no other figure shows
ROWS, COLUMNS = 22, 110  # of one panel in the terminal, at most


def add(commands: argparse._SubParsersAction[Any]) -> None:
    plot = commands.add_parser(
        "plot", help="any figure of a run directory, in the terminal and as PNG"
    )
    plot.add_argument("run_dir", type=Path, nargs="?", metavar="RUN_DIR")
    for backend in BACKENDS:
        plot.add_argument(
            f"--{backend}-results", type=Path, metavar="D", help="instead of a RUN_DIR"
        )
        plot.add_argument(f"--{backend}-imbalance", type=Path, metavar="F")
    plot.add_argument(
        "--figure", choices=(*labels.FIGURES, DOSE), default="scatter", help="default: scatter"
    )
    plot.add_argument(
        "--only",
        type=arg.listed,
        default=[],
        metavar="001,007",
        help="only these datasets; the PNG goes into RUN_DIR/only-001-007/graphs",
    )
    plot.add_argument("--backend", metavar="NAME", help="only this backend")
    plot.add_argument("--run", metavar="BACKEND/001", help="only this run")
    plot.add_argument(
        "--metric",
        default="mean_ttft_ms",
        help="scatter: any numeric key of the results; dose: mean_ttft_ms, mean_tpot_ms, "
        "output_throughput or decode_step_ms",
    )
    plot.add_argument(
        "--against",
        choices=tuple(labels.AXES),
        type=_axis,
        help="scatter; default: excess if most runs have one",
    )
    plot.add_argument(
        "-o", "--png", dest="out", type=Path, metavar="F.png", help="default: in RUN_DIR/graphs"
    )
    plot.set_defaults(command=run)


def _axis(name: str) -> str:
    """An axis as it is called now: per-step was once called real."""
    return "per-step" if name == "real" else name


def run(arguments: argparse.Namespace) -> int:
    """Draw it, and write the PNG. NoDataError where there is nothing to draw."""
    from core.plots import png
    from core.plots.figure import noted

    chosen = _selection(arguments)
    groups, engine = _results(arguments, chosen)
    _warn(arguments.run_dir, groups, chosen)
    if arguments.figure == "scatter":
        name, panels = _scatter(groups, engine, arguments)
    elif arguments.figure == DOSE:
        name, panels = _dose(groups, engine, arguments)
    else:
        name, panels = arguments.figure, _panels(groups, engine, arguments, chosen)
    panels = [noted(panel, chosen.in_words()) for panel in panels]
    _print(panels)
    part = (arguments.run or arguments.backend or "").replace("/", "-")
    folder = chosen.folder(arguments.run_dir or Path()) / "graphs"
    try:
        file = png.write(
            panels, arguments.out or folder / f"{'-'.join(filter(None, (name, part)))}.png"
        )
    except (OSError, ValueError) as error:
        raise FileError(f"{arguments.out or folder}: cannot be written: {error}") from None
    print(f"wrote {file}", file=sys.stderr)
    return 0


def _selection(arguments: argparse.Namespace) -> Selection:
    from core.rundir import selection

    if not arguments.only:
        return selection.ALL
    if not arguments.run_dir:
        raise UsageError("--only names datasets of a RUN_DIR: plot takes it with one only")
    return selection.of_run_directory(arguments.run_dir, arguments.only)


def _results(arguments: argparse.Namespace, chosen: Selection) -> tuple[list[Results], str]:
    """The results asked for, and their engine's name."""
    from core.analysis import results as analysis

    flags = [
        (b, getattr(arguments, f"{b}_results"), getattr(arguments, f"{b}_imbalance"))
        for b in BACKENDS
    ]
    given = [(name, results, mapping) for name, results, mapping in flags if results]
    if bool(arguments.run_dir) == bool(given):
        raise UsageError("plot takes a RUN_DIR, or --baseline-results and --all2all-results")
    if given:
        groups, engine = [analysis.of_folders(n, r, m, m) for n, r, m in given], ""
    else:
        groups, engine = analysis.of_run_directory(arguments.run_dir, chosen)
    backend, _, label = (arguments.run or arguments.backend or "").partition("/")
    return analysis.narrowed(groups, backend, label), engine


def _warn(run_dir: Path | None, groups: Sequence[Results], chosen: Selection) -> None:
    """Say what is wrong with what is drawn."""
    from core.terminal import printable
    from core.validity import verdict

    validity = (
        verdict.of_run_directory(run_dir, groups, chosen) if run_dir else verdict.of_results(groups)
    )
    for problem in validity.problems:
        print(f"gatescope: {printable(problem.in_words())}", file=sys.stderr)


def _scatter(
    groups: Sequence[Results], engine: str, arguments: argparse.Namespace
) -> tuple[str, list[Figure]]:
    from core.analysis import findings
    from core.plots import scatter

    axis = arguments.against or scatter.best_axis(groups)
    rows = findings.find(groups, engine).associations if axis == "excess" else []
    return f"{arguments.metric}-{axis}", [
        scatter.series(groups, arguments.metric, axis, engine, rows)
    ]


def _dose(
    groups: Sequence[Results], engine: str, arguments: argparse.Namespace
) -> tuple[str, list[Figure]]:
    from core.analysis import dose_findings
    from core.plots import dose

    return dose.name(arguments.metric, "cv"), [
        dose.series(dose_findings.find(groups), arguments.metric, "cv", engine)
    ]


def _panels(
    groups: Sequence[Results], engine: str, arguments: argparse.Namespace, chosen: Selection
) -> list[Figure]:
    from core.analysis import step_sample
    from core.plots import gallery

    samples: dict[str, StepSample] = {}
    if arguments.figure in gallery.OF_STEPS:
        if not arguments.run_dir:
            raise UsageError(f"{arguments.figure} is drawn from gate logs, so it takes a RUN_DIR")
        samples, problems = step_sample.of_backends(
            arguments.run_dir, [group.name for group in groups], chosen
        )
        for problem in problems:
            print(f"gatescope: {problem}", file=sys.stderr)
        if arguments.run:
            samples = {
                name: sample.of_run(arguments.run.partition("/")[2])
                for name, sample in samples.items()
            }
    return gallery.panels(arguments.figure, groups, samples, engine)


def _print(panels: Sequence[Figure]) -> None:
    from core import terminal
    from core.plots import text

    columns = min(terminal.terminal_columns(), COLUMNS)
    print(
        "\n\n".join(text.draw(panel, columns, ROWS, colour=sys.stdout.isatty()) for panel in panels)
    )
