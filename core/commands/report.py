"""`gatescope report`: report.md and report.html of a run directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.commands import arguments as arg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory to report on")
    arg.add_only(
        parser,
        "report on these datasets only, into RUN_DIR/only-001-007; the report on all datasets"
        " stays as it is",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if results are invalid")


def run(arguments: argparse.Namespace) -> int:
    from core.report import report
    from core.terminal import printable

    files, validity = report.write(arguments.run_dir, arguments.only)
    for line in (*validity.in_words(), *(f"wrote {file}" for file in files)):
        print(printable(line), file=sys.stderr)
    return 1 if arguments.strict and validity.is_invalid else 0
