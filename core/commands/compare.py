"""`gatescope compare`: run directories or sweeps against the first of them, with gates for a CI."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands import arguments as arg
from core.errors import UsageError

if TYPE_CHECKING:
    from core.analysis.comparand import Comparand
    from core.analysis.gate import Gate
    from core.report.comparison import Compared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="run directories or sweeps; each is compared with the first",
    )
    parser.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="METRIC<=+N%",
        help="exit with 1 where the metric's whole interval lies beyond, such as"
        " 'mean_tpot_ms<=+2%%' or 'output_throughput>=-2%%'; may be repeated",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit with 1 also where a gate is inconclusive, or results are invalid",
    )
    parser.add_argument(
        "--margin",
        type=arg.percentage,
        default=2.0,
        metavar="2%",
        help="smallest difference that matters, for the verdicts (default: 2%%)",
    )
    parser.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="also show a result that vllm bench, guidellm or aiperf wrote; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of Markdown")


def run(arguments: argparse.Namespace) -> int:
    from core.analysis import comparand, gate, peer
    from core.report import comparison

    paths: list[Path] = arguments.paths
    if len(paths) < 2 and not arguments.also:
        raise UsageError("compare takes two directories or more, or one and --also FILE")
    gates = [gate.parse(text) for text in arguments.gate]
    peers = [row for file in arguments.also for row in peer.read(file)]
    first = comparand.read(paths[0])
    found = [
        _compared(paths[0], first, path, gates, margin_pct=arguments.margin) for path in paths[1:]
    ]
    if peers:
        peers = [row for path in paths for row in peer.ours(comparand.read(path))] + peers
    if arguments.json:
        from core.files import formatted

        sys.stdout.write(formatted(comparison.as_json(found, peers)).decode())
    else:
        sys.stdout.write(comparison.page(found, peers))
    return _code(found, strict=arguments.strict)


def _compared(
    before: Path, first: list[Comparand], after: Path, gates: list[Gate], *, margin_pct: float
) -> Compared:
    from core.analysis import across, comparand
    from core.report.comparison import Compared
    from core.validity import verdict

    second = comparand.read(after)
    made, rest = across.pairs(first, second, margin_pct)
    invalid = [*verdict.invalid(before, first), *verdict.invalid(after, second)]
    return Compared(str(before), str(after), made, rest, across.rulings(gates, made), invalid)


def _code(found: list[Compared], *, strict: bool) -> int:
    """1 where a gate failed; with `strict` also where one is inconclusive, or results are
    invalid."""
    answers = {ruling.answer for one in found for ruling in one.rulings}
    doubt = "inconclusive" in answers or any(one.invalid for one in found)
    return int("failed" in answers or (strict and doubt))
