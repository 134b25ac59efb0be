"""`gatescope watch`: the load of experts, ranks and nodes in a log that grows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.commands import arguments as arg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="what `gatescope record` writes into, a run directory, or a folder of gate logs",
    )
    parser.add_argument(
        "--every",
        type=arg.between(0.5, 3600),
        default=2.0,
        metavar="S",
        help="seconds from one look to the next (default: 2)",
    )
    parser.add_argument(
        "--once", action="store_true", help="print once, as is done without a terminal"
    )
    parser.add_argument("--ascii", action="store_true", help="ASCII characters only")


def run(arguments: argparse.Namespace) -> int:
    """The screen until it is left; printed once, 1 if there is nothing to see."""
    from core.errors import FileError
    from core.terminal import has_screen, is_dumb

    if not arguments.folder.is_dir():
        raise FileError(f"{arguments.folder}: not a folder")
    if arguments.once or not (has_screen() and sys.stdout.isatty()) or is_dumb():
        return _print(arguments.folder)
    from tui import start

    return start.watch(arguments.folder, arguments.every, ascii=arguments.ascii)


def _print(folder: Path) -> int:
    from core.commands.watch_table import lines
    from core.routing.windows import Watched

    watched = Watched(folder)
    watched.read()
    sys.stdout.write("\n".join(lines(watched, watched.at_s)) + "\n")
    return 0 if watched.header else 1
