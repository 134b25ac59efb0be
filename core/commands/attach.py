"""`gatescope attach`: the terminal UI on a run directory."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory to show")
    parser.add_argument("--ascii", action="store_true", help="ASCII characters only")


def run(arguments: argparse.Namespace) -> int:
    from tui import start

    return start.attach(arguments.run_dir, ascii=arguments.ascii)
