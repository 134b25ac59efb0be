"""`gatescope report`: report.md and report.html of a run directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.commands import arguments as arg
from core.errors import NoDataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="run directory or sweep to report on"
    )
    arg.add_only(
        parser,
        "report on these datasets only, into RUN_DIR/only-001-007; the report on all datasets"
        " stays as it is",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if results are invalid")


def run(arguments: argparse.Namespace) -> int:
    from core.report import report
    from core.rundir import sweep
    from core.terminal import printable

    if sweep.is_sweep(arguments.run_dir):
        return _of_sweep(arguments)
    files, validity = report.write(arguments.run_dir, arguments.only)
    for line in (*validity.in_words(), *(f"wrote {file}" for file in files)):
        print(printable(line), file=sys.stderr)
    return 1 if arguments.strict and validity.is_invalid else 0


def _of_sweep(arguments: argparse.Namespace) -> int:
    """Every cell's report, then the sweep's own."""
    from core.report import report
    from core.report import sweep as sweep_report
    from core.rundir import sweep
    from core.terminal import printable

    is_invalid = False
    for slug, own in sweep.run_directories(arguments.run_dir).items():
        try:
            files, validity = report.write(own, arguments.only)
        except NoDataError as error:
            print(printable(f"{slug}: {error}"), file=sys.stderr)
            continue
        is_invalid |= validity.is_invalid
        for line in (*validity.in_words(), *(f"wrote {file}" for file in files)):
            print(printable(f"{slug}: {line}"), file=sys.stderr)
    for file in sweep_report.write(arguments.run_dir):
        print(f"wrote {file}", file=sys.stderr)
    return 1 if arguments.strict and is_invalid else 0
