"""`gatescope plot`: any figure of a run directory, in the terminal and as PNG."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands import arguments as arg
from core.errors import FileError, UsageError
from core.plots import labels
from core.terminal import complain, takes_colour

if TYPE_CHECKING:
    from core.analysis.results import Results
    from core.analysis.step_sample import StepSample
    from core.plots.figure import Figure
    from core.plots.gallery import Invalid
    from core.rundir.selection import Selection
    from core.validity.problem import Validity

BACKENDS = ("baseline", "all2all")
DOSE = "dose"  # forced routing, which no other figure shows
ROWS, COLUMNS = 22, 110  # of one panel in the terminal, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", type=Path, nargs="?", metavar="RUN_DIR", help="run directory or sweep to draw"
    )
    for backend in BACKENDS:
        parser.add_argument(
            f"--{backend}-results",
            type=Path,
            metavar="DIR",
            help=f"instead of RUN_DIR: folder of {backend}'s result files",
        )
        parser.add_argument(
            f"--{backend}-imbalance",
            type=Path,
            metavar="F",
            help=f"JSON file of {backend}'s measured imbalance, to go with its results",
        )
    parser.add_argument(
        "--figure",
        choices=(*labels.FIGURES, DOSE, *labels.OF_CELLS),
        help="figure to draw (default: scatter; of a sweep: pareto)",
    )
    arg.add_only(parser, "draw these datasets only; PNG in RUN_DIR/only-001-007/graphs")
    parser.add_argument("--backend", metavar="NAME", help="draw this backend only")
    parser.add_argument("--run", metavar="BACKEND/001", help="draw this run only")
    parser.add_argument(
        "--metric",
        metavar="KEY",
        help="scatter: any numeric key of the results; dose: mean_ttft_ms, mean_tpot_ms,"
        " output_throughput or decode_step_ms (default: mean_ttft_ms); pareto: mean_tpot_ms (the"
        " default), mean_ttft_ms or mean_e2e_ms",
    )
    parser.add_argument(
        "--against",
        choices=tuple(labels.AXES),
        type=_axis,
        help="scatter: the imbalance to plot against (default: excess if most runs have one)",
    )
    parser.add_argument(
        "-o",
        "--png",
        dest="out",
        type=Path,
        metavar="F.png",
        help="file to write (default: in RUN_DIR/graphs)",
    )


def _axis(name: str) -> str:
    """An axis as it is called now: per-step was once called real."""
    return "per-step" if name == "real" else name


def run(arguments: argparse.Namespace) -> int:
    """Draw the figure, and write the PNG. NoDataError if there is nothing to draw."""
    from core.plots.figure import noted

    if _is_of_cells(arguments):
        return _draw_cells(arguments)
    arguments.metric = arguments.metric or "mean_ttft_ms"
    chosen = _selection(arguments)
    groups, engine = _results(arguments, chosen)
    validity = _validity(arguments.run_dir, groups, chosen)
    invalid = validity.invalid(group.name for group in groups)
    if arguments.figure in (None, "scatter"):
        name, panels = _scatter(groups, engine, arguments, invalid)
    elif arguments.figure == DOSE:
        name, panels = _dose(groups, engine, arguments, invalid)
    else:
        name, panels = arguments.figure, _panels(groups, engine, arguments, chosen, invalid)
    panels = [noted(panel, chosen.in_words()) for panel in panels]
    part = (arguments.run or arguments.backend or "").replace("/", "-")
    folder = chosen.folder(arguments.run_dir or Path()) / "graphs"
    stem = f"{name}-{part}" if part else name
    return _shown(panels, arguments.out or folder / f"{stem}.png")


def _shown(panels: Sequence[Figure], out: Path) -> int:
    """Print the figure, and write it to `out`."""
    from core.plots import png

    _print(panels)
    try:
        file = png.write(panels, out)
    except (OSError, ValueError) as error:
        raise FileError(f"{out}: cannot be written: {error}") from None
    print(f"wrote {file}", file=sys.stderr)
    return 0


def _is_of_cells(arguments: argparse.Namespace) -> bool:
    """Whether a figure of cells is asked for. UsageError for one of runs, of a sweep."""
    from core.rundir import sweep

    figure, path = arguments.figure, arguments.run_dir
    if path is None or not sweep.is_sweep(path):
        if figure in labels.OF_CELLS and path is None:
            raise UsageError(f"{figure} is drawn of a sweep or a run directory: give one")
        return figure in labels.OF_CELLS
    if figure not in (None, *labels.OF_CELLS):
        raise UsageError(
            f"{figure} is drawn of one run directory, such as a cell: gatescope plot"
            f" {path / sweep.CELLS}/NAME --figure {figure}"
        )
    return True


def _draw_cells(arguments: argparse.Namespace) -> int:
    from core.analysis import comparand
    from core.plots import cells
    from core.plots.figure import marked
    from core.validity import verdict

    figure = arguments.figure or "pareto"
    found = comparand.read(arguments.run_dir)
    if figure == "pareto":
        panels = cells.pareto(found, arguments.metric or "mean_tpot_ms")
    else:
        panels = cells.against_load(found)
    for problem in verdict.invalid(arguments.run_dir, found):
        complain(problem)
    rules = verdict.invalid_rules(found)
    panels = [marked(panel, rules) for panel in panels]
    return _shown(panels, arguments.out or arguments.run_dir / "graphs" / f"{figure}.png")


def _selection(arguments: argparse.Namespace) -> Selection:
    from core.rundir import selection

    if not arguments.only:
        return selection.ALL
    if not arguments.run_dir:
        raise UsageError("--only names datasets of a run directory: give RUN_DIR too")
    return selection.of_run_directory(arguments.run_dir, arguments.only)


def _results(arguments: argparse.Namespace, chosen: Selection) -> tuple[list[Results], str]:
    """The chosen results, and their engine's name."""
    from core.analysis import results as analysis

    flags = [
        (b, getattr(arguments, f"{b}_results"), getattr(arguments, f"{b}_imbalance"))
        for b in BACKENDS
    ]
    given = [(name, results, mapping) for name, results, mapping in flags if results]
    if bool(arguments.run_dir) == bool(given):
        raise UsageError("plot takes RUN_DIR, or --baseline-results and --all2all-results")
    if given:
        groups, engine = [analysis.of_folders(n, r, m, m) for n, r, m in given], ""
    else:
        groups, engine = analysis.of_run_directory(arguments.run_dir, chosen)
    backend, _, label = (arguments.run or arguments.backend or "").partition("/")
    return analysis.narrowed(groups, backend, label), engine


def _validity(run_dir: Path | None, groups: Sequence[Results], chosen: Selection) -> Validity:
    """What is wrong with the results that are drawn, printed too."""
    from core.validity import verdict

    validity = (
        verdict.of_run_directory(run_dir, groups, chosen) if run_dir else verdict.of_results(groups)
    )
    for problem in validity.problems:
        complain(problem.in_words())
    return validity


def _scatter(
    groups: Sequence[Results], engine: str, arguments: argparse.Namespace, invalid: Invalid
) -> tuple[str, list[Figure]]:
    from core.analysis import findings
    from core.plots import gallery, scatter

    axis = arguments.against or scatter.best_axis(groups)
    rows = findings.find(groups, engine).associations if axis == "excess" else []
    drawn = scatter.series(groups, arguments.metric, axis, engine, rows)
    return f"{arguments.metric}-{axis}", [gallery.of_all(drawn, groups, invalid)]


def _dose(
    groups: Sequence[Results], engine: str, arguments: argparse.Namespace, invalid: Invalid
) -> tuple[str, list[Figure]]:
    from core.analysis import dose_findings
    from core.plots import dose, gallery

    drawn = dose.series(dose_findings.find(groups), arguments.metric, "cv", engine)
    return dose.name(arguments.metric, "cv"), [gallery.of_all(drawn, groups, invalid)]


def _panels(
    groups: Sequence[Results],
    engine: str,
    arguments: argparse.Namespace,
    chosen: Selection,
    invalid: Invalid,
) -> list[Figure]:
    from core.analysis import step_sample
    from core.plots import gallery

    samples: dict[str, StepSample] = {}
    if arguments.figure in gallery.OF_STEPS:
        if not arguments.run_dir:
            raise UsageError(f"{arguments.figure} is drawn from gate logs: give RUN_DIR")
        samples, problems = step_sample.of_backends(
            arguments.run_dir, [group.name for group in groups], chosen
        )
        for problem in problems:
            complain(problem)
        if arguments.run:
            samples = {
                name: sample.of_run(arguments.run.partition("/")[2])
                for name, sample in samples.items()
            }
    return gallery.panels(arguments.figure, groups, samples, engine, invalid)


def _print(panels: Sequence[Figure]) -> None:
    from core import terminal
    from core.plots import text

    columns = min(terminal.terminal_columns(), COLUMNS)
    print(
        "\n\n".join(
            text.draw(panel, columns, ROWS, colour=takes_colour(sys.stdout)) for panel in panels
        )
    )
