"""`gatescope init`: experiments.toml and the datasets for a new directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(arguments: argparse.Namespace) -> int:
    from core.workload import starter

    for file in starter.write(Path()):
        print(f"wrote {file}", file=sys.stderr)
    print("next: gatescope --batch", file=sys.stderr)
    return 0
