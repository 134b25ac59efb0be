"""`gatescope init`: experiments.toml and the datasets for a new directory, and the built-in
engine's model for other servers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="also write the built-in engine's trained model to DIR, as a Hugging Face checkpoint",
    )


def run(arguments: argparse.Namespace) -> int:
    from core.workload import starter

    for file in starter.write(Path(), arguments.model):
        print(f"wrote {file}", file=sys.stderr)
    if arguments.model:
        served = f'[model] id = "{arguments.model.resolve()}"'
        print(f"for vLLM to serve this model, set {served} in experiments.toml", file=sys.stderr)
    print("next: gatescope --batch", file=sys.stderr)
    return 0
