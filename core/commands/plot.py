"""`gatescope plot`: any figure of a run directory, in the terminal and as PNG."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.plots.scatter import Axis


def add(commands: argparse._SubParsersAction[Any]) -> None:
    plot = commands.add_parser("plot", help="a metric against imbalance, in the terminal and as PNG")
    plot.add_argument("run_dir", type=Path, nargs="?", metavar="RUN_DIR")
    for backend in ("baseline", "all2all"):
        plot.add_argument(f"--{backend}-results", type=Path, metavar="D")
        plot.add_argument(f"--{backend}-imbalance", type=Path, metavar="F")
    plot.add_argument("--metric", default="mean_ttft_ms", help="any numeric key of the results")
    plot.add_argument(
        "--against", choices=("excess", "real", "aggregated", "predicted"), help="default: real where known"
    )
    plot.add_argument("-o", "--png", dest="out", type=Path, metavar="F.png")
    plot.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    from core import analysis, batch, findings
    from core.config import ConfigError
    from core.narrate import printable
    from core.plots import png, scatter, text
    from core.validity import verdict

    flags = [
        (b, getattr(arguments, f"{b}_results"), getattr(arguments, f"{b}_imbalance")) for b in ("baseline", "all2all")
    ]
    given = [(name, results, mapping) for name, results, mapping in flags if results]
    if bool(arguments.run_dir) == bool(given):
        raise ConfigError("plot takes a RUN_DIR, or --baseline-results and --all2all-results")
    if arguments.run_dir:
        groups, engine = analysis.of_run_directory(arguments.run_dir)
        has_real = True
    else:
        groups, engine = [analysis.of_folders(n, r, m, m) for n, r, m in given], ""
        has_real = all(m for _, _, m in given)
    validity = verdict.of_run_directory(arguments.run_dir, groups) if arguments.run_dir else verdict.of_results(groups)
    for problem in validity.problems:
        print(f"gatescope: {printable(problem.in_words())}", file=sys.stderr)
    axis: Axis = arguments.against or ("real" if has_real else "predicted")
    rows = findings.find(groups, engine).associations if axis == "excess" else []
    series = scatter.series(groups, arguments.metric, axis, engine, rows)
    print(text.draw(series, min(batch.terminal_columns(), 110), 24, colour=sys.stdout.isatty()))
    folder = arguments.run_dir / "graphs" if arguments.run_dir else Path("graphs")
    try:
        file = png.write(series, arguments.out or folder / f"{arguments.metric}-{axis}.png")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{arguments.out}: cannot be written: {error}") from None
    print(f"wrote {file}", file=sys.stderr)
    return 0
