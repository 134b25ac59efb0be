"""`gatescope convert`: expert loads that another project logged, as a gate log."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.commands import arguments as arg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=Path,
        metavar="FILE",
        help="SGLang's expert distribution (.pt, .json), a folder of TensorRT-LLM's expert"
        " statistics, or answers of vLLM with routed_experts (JSON, JSON lines)",
    )
    parser.add_argument(
        "-o",
        dest="out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the gate log; must be new or empty",
    )
    parser.add_argument(
        "--top-k", type=arg.at_least(1), metavar="N", help="experts of a token (SGLang)"
    )
    parser.add_argument(
        "--experts", type=arg.at_least(2), metavar="N", help="experts of a layer (vLLM)"
    )
    parser.add_argument(
        "--model", default="unknown", metavar="M", help="the model's name, for the log"
    )


def run(arguments: argparse.Namespace) -> int:
    from core.errors import FileError
    from core.routing import foreign

    found = foreign.read(arguments.path, arguments.top_k, arguments.experts)
    out: Path = arguments.out
    try:
        if out.exists() and any(out.iterdir()):
            raise FileError(f"{out}: is not empty; name another folder")
        foreign.write(found, arguments.model, out / "dp0_pp0.gatelog")
    except OSError as error:
        raise FileError(f"{out}: cannot be written: {error.strerror}") from None
    steps, layers, experts = found.loads.shape
    shape = f"{steps} steps, {layers} layers × {experts} experts, {int(found.tokens.sum())} tokens"
    print(f"wrote {out}: {shape}", file=sys.stderr)
    return 0
