"""`gatescope predict`: the predicted imbalance score of datasets, or what a model's router is
expected to do with them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands import arguments as arg
from core.errors import BAD_USAGE, DatasetError, UsageError
from core.terminal import complain

if TYPE_CHECKING:
    from core.workload.predictor import Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "files",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="dataset: JSON lines, or a JSON array",
    )
    what.add_argument(
        "--run",
        type=Path,
        metavar="RUN_DIR",
        help="the datasets of this run; what --model predicts of them goes into its results",
    )
    parser.add_argument("--json", action="store_true", help="predictions as JSON on stdout")
    router = parser.add_argument_group("a model's router instead of the texts' score")
    router.add_argument(
        "--model",
        metavar="CHECKPOINT",
        help="folder, or hub name in the hub's cache, of a Mixtral, Qwen MoE, DeepSeek or OLMoE"
        " checkpoint; or builtin",
    )
    router.add_argument(
        "--mode",
        choices=("exact", "table", "calibrated"),
        default="exact",
        help="exact: run the prompts through the model (default); table: learn what each token and"
        " the two before it load; calibrated: also how far that is off",
    )
    router.add_argument(
        "--learn", type=Path, metavar="RUN_DIR", help="recorded run that table and calibrated need"
    )
    router.add_argument(
        "--layers", type=arg.span, metavar="0-3", help="predict these layers alone, and stop there"
    )
    router.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="precision to compute in (default: auto, the checkpoint's own)",
    )
    router.add_argument(
        "--backend", metavar="NAME", help="backend of --config whose batches are planned for"
    )
    router.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="what gatescope calibrate found of that backend: steps, TTFT and TPOT are timed",
    )
    arg.add_config(router)


def run(arguments: argparse.Namespace) -> int:
    """0 if every file has a score, 1 if some have none, BAD_USAGE if none has one."""
    if arguments.model:
        from core.commands import router_prediction

        return router_prediction.run(arguments)
    if arguments.run:
        raise UsageError("--run: name the model too, with --model")
    found = _predictions(arguments.files)
    if arguments.json:
        _print_json(found)
    else:
        _print_lines(found)
    if not found:
        return BAD_USAGE
    return 1 if len(found) < len(set(map(str, arguments.files))) else 0


def _predictions(files: list[Path]) -> dict[str, Prediction]:
    """The prediction by file; a file that has none is reported on stderr and left out."""
    from core.workload import dataset, formats, predictor

    found = {}
    for place, file in enumerate(files, 1):
        try:
            prompts = formats.read(file, dataset.index_of(file, place)).prompts
            found[str(file)] = predictor.predict([p.text for p in prompts])
        except (DatasetError, ValueError) as error:
            complain(str(error))
    return found


def _print_json(found: Mapping[str, Prediction]) -> None:
    import json

    whole = {
        file: {"score": p.score, "components": p.components, "raw_metrics": p.raw_metrics}
        for file, p in found.items()
    }
    print(json.dumps(whole, indent=1))


def _print_lines(found: Mapping[str, Prediction]) -> None:
    for file, prediction in found.items():
        print(f"{prediction.score:.4f}  {file}")
        for name, part in prediction.components.items():
            print(f"          {name:<24}{part['contribution']:.4f}  {part['percentage']:5.1f} %")
