"""`gatescope generate`: new datasets, and a picture of their scores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands import arguments as arg
from core.errors import FileError, UsageError

if TYPE_CHECKING:
    from core.workload.generator import Drawn
    from core.workload.strategies import Queries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("datasets"),
        metavar="DIR",
        help="folder to write (default: datasets)",
    )
    parser.add_argument(
        "--count",
        type=arg.at_least(1),
        default=50,
        metavar="N",
        help="number of datasets (default: 50)",
    )
    parser.add_argument(
        "--seed", type=arg.at_least(0), default=0, metavar="N", help="random seed (default: 0)"
    )
    parser.add_argument(
        "--target",
        type=arg.scores,
        metavar="0.3,0.9",
        help="make one dataset at each of these scores, instead of --count",
    )
    parser.add_argument(
        "--target-excess",
        type=arg.levels,
        metavar="0.2,0.8",
        help="make one dataset at each of these excess CVs of prefill, as predicted from --model",
    )
    parser.add_argument(
        "--model",
        metavar="CHECKPOINT",
        help="the model whose router --target-excess aims at, as of gatescope predict; or builtin",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="remove the datasets that an earlier call wrote there, also where others take their"
        " place",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the datasets and the histogram. UsageError or FileError if either cannot be made."""
    if bool(arguments.model) != bool(arguments.target_excess):
        raise UsageError("--model and --target-excess go together; give both")
    if arguments.target and arguments.target_excess:
        raise UsageError("--target aims at the score, --target-excess at the router; give one")
    from core.workload import folder

    try:
        made = _made(arguments)
        files = folder.write(made, arguments.out, replace=arguments.replace)
        picture = _draw([dataset.score for dataset in made])
    except OSError as error:
        raise FileError(f"{error.filename}: {error.strerror}") from None
    print(f"wrote {len(files)} datasets to {arguments.out}, and {picture}", file=sys.stderr)
    return 0


def _made(arguments: argparse.Namespace) -> list[Drawn]:
    from core.workload import generator, starter

    queries = generator.load_queries(starter.queries_file(arguments.out))
    if arguments.model:
        return _aimed(arguments, queries)
    if not arguments.target:
        return generator.generate(queries, count=arguments.count, seed=arguments.seed)
    return [
        generator.mix_to_target(queries, target, seed=arguments.seed, index=index)
        for index, target in enumerate(arguments.target, 1)
    ]


def _aimed(arguments: argparse.Namespace, queries: Queries) -> list[Drawn]:
    from core.commands import prediction_lines, router_prediction

    model = router_prediction.opened(arguments.model)
    from core.prediction import aim

    tell = prediction_lines.progress()
    made = aim.aim(model, queries, arguments.target_excess, seed=arguments.seed, tell=tell)
    for dataset in made:
        print(f"{dataset.file}: predicted excess CV {dataset.excess_cv:.3f}", file=sys.stderr)
    return made


def _draw(scores: Sequence[float]) -> Path:
    """Show the distribution of `scores` on stderr; the PNG of it."""
    from core import terminal
    from core.plots import histogram, png, text

    drawn = histogram.of(scores, "predicted imbalance score", "datasets")
    columns = min(terminal.terminal_columns(), 100)
    print(text.draw(drawn, columns, 30, colour=terminal.takes_colour(sys.stderr)), file=sys.stderr)
    return png.write(drawn, Path("graphs") / "score_distribution.png")
