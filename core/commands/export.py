"""`gatescope export`: a run directory in another layout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.terminal import complain

PEERS = ("sglang", "tensorrt-llm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="run directory or sweep to export"
    )
    parser.add_argument(
        "--layout",
        choices=("upstream", "parquet", *PEERS),
        required=True,
        help="upstream: files in upstream's formats; parquet: tables of runs, steps and loads"
        " (needs pyarrow); sglang, tensorrt-llm: expert loads of all gate logs in it, as these"
        " projects read them",
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

    out = arguments.out or arguments.run_dir / "export"
    if arguments.layout in PEERS:
        return _of_peers(arguments.run_dir, out, arguments.layout)
    write = export.upstream if arguments.layout == "upstream" else export.parquet
    for slug, own in sweep.run_directories(arguments.run_dir).items():
        for file in write(own, out / slug):
            print(f"wrote {file}", file=sys.stderr)
    return 0


def _of_peers(folder: Path, out: Path, layout: str) -> int:
    """Each folder of gate logs, into one of the same name; 1 if one of them cannot be read."""
    from core.errors import FileError, GateLogError
    from core.routing import peers, places

    write = peers.write_sglang if layout == "sglang" else peers.write_tensorrt
    logs = places.all_in(folder)
    if not logs:
        raise FileError(f"{folder}: no gate logs in it")
    code = 0
    for place in logs:
        try:
            made = write(place, out / place.relative_to(folder))
        except OSError as error:
            raise FileError(f"{out}: cannot be written: {error.strerror}") from None
        except GateLogError as error:
            complain(str(error))
            code = 1
            continue
        for file in made:
            print(f"wrote {file}", file=sys.stderr)
    return code
