"""`gatescope export`: a run directory in another layout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="run directory or sweep to export"
    )
    parser.add_argument(
        "--layout",
        choices=("upstream", "parquet"),
        required=True,
        help="upstream: files in upstream's formats; parquet: tables of runs, steps and loads"
        " (needs pyarrow)",
    )
    parser.add_argument(
        "-o",
        dest="out",
        type=Path,
        metavar="DIR",
        help="folder to write, of a sweep one in it for each cell (default: RUN_DIR/export)",
    )


def run(arguments: argparse.Namespace) -> int:
    from core.report import export
    from core.rundir import sweep

    write = export.upstream if arguments.layout == "upstream" else export.parquet
    out = arguments.out or arguments.run_dir / "export"
    for slug, own in sweep.run_directories(arguments.run_dir).items():
        for file in write(own, out / slug):
            print(f"wrote {file}", file=sys.stderr)
    return 0
