"""`gatescope runs`: the run directories in a folder, the newest first."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.rundir.past import Past


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("runs"),
        metavar="DIR",
        help="folder of run directories (default: runs)",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    import msgspec

    from core.rundir import past
    from core.terminal import complain, printable

    found, wrong = past.of_folder(arguments.folder)
    for text in wrong:
        complain(text)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        for row in rows(found):
            print(printable(row))
    return 1 if wrong else 0


def rows(found: list[Past]) -> list[str]:
    """A line each, in columns."""
    import time

    cells = [
        (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(past.started_at)),
            past.state,
            f"{past.done}/{past.runs}" + (f" ({past.failed} failed)" if past.failed else ""),
            past.path,
            past.headline,
        )
        for past in found
    ]
    widths = [max((len(row[i]) for row in cells), default=0) for i in range(4)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in cells
    ]
