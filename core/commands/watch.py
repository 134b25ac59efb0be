"""`gatescope watch`: the load of experts and ranks in a log that grows."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from core.commands import arguments as arg

CLEAR = "\x1b[H\x1b[J"  # and the cursor to the top


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


def run(arguments: argparse.Namespace) -> int:
    """Redraw until ctrl-C; 1 if there is nothing to see at a single look."""
    from core.commands.watch_table import frame
    from core.errors import FileError
    from core.routing.windows import Watched
    from core.terminal import is_dumb, printable, size

    if not arguments.folder.is_dir():
        raise FileError(f"{arguments.folder}: not a folder")
    watched = Watched(arguments.folder)
    is_once = arguments.once or not sys.stdout.isatty() or is_dumb()
    if not is_once:  # an hour of a large model's steps takes minutes to read
        print(f"{CLEAR}reading {printable(str(arguments.folder))} …", flush=True)
    while True:
        now_s = time.time()
        watched.read(now_s)
        if is_once:
            print("\n".join(frame(watched, now_s, 10**6)))
            return 0 if watched.header else 1
        columns, rows = size()
        lines = [line[: columns - 1] for line in frame(watched, now_s, rows - 1)]
        sys.stdout.write(CLEAR + "\n".join(lines) + "\n")
        sys.stdout.flush()
        time.sleep(arguments.every)
