"""`gatescope calibrate`: what routing costs one backend, from the kernel alone and from a short
sweep of step sizes and load shapes at one start of its server."""

from __future__ import annotations

import argparse
import datetime
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands import arguments as arg
from core.errors import DatasetError, FileError
from core.terminal import tell

if TYPE_CHECKING:
    from core.analysis.calibration import Calibration
    from core.backends.choice import Kind
    from core.experiment.config import Config
    from core.experiment.tables import Backend, Forcing
    from core.routing.price import PriceList
    from core.workload.dataset import Prompt

SIZES = (8, 16, 32, 64, 128, 256, 512)  # requests at once
SHARES = (0.3, 0.6, 0.9)  # of the largest CV that can be forced
INPUT_LEN, OUTPUT_LEN = 128, 48  # tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="BACKEND", help="name of a [[backends]] table")
    arg.add_config(parser)
    arg.add_engine(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="run directory of the sweep, new or empty"
    )
    parser.add_argument(
        "--sizes",
        type=arg.sizes,
        metavar="8,32",
        help="requests at once (default: powers of 2 from 8 to max_num_seqs)",
    )
    parser.add_argument("--json", action="store_true", help="the calibration as JSON on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Measure, fit, store, print. 1 if a run failed; what the others show is stored all the
    same."""
    from core.backends import choice
    from core.commands import batch
    from core.experiment import config, plan
    from core.rundir import directory as store
    from core.rundir.directory import RunDirectory

    loaded = config.load(arguments.config)
    (name,) = plan.select_backends(loaded, [arguments.name])
    backend = next(one for one in loaded.backends if one.name == name)
    wanted = config.engine(arguments.engine) if arguments.engine else loaded.experiment.engine
    kind = choice.decide(wanted, [backend])
    sizes, prompts = arguments.sizes or _sizes(backend), _prompts(loaded)
    sweep = _sweep(loaded, backend, kind, max(sizes))
    choice.launcher(kind, [backend])
    with RunDirectory.create(arguments.out or store.new_path(sweep.experiment.name)) as directory:
        sweep = _with_datasets(sweep, directory.path, prompts, sizes)
        job = batch.checked(batch.Job(sweep, kind, list(plan.make(sweep).runs), {}, resumed=False))
        prices, why = _price_list(backend, loaded, kind)
        code = batch.run_in(directory, job, json=False)
        if code > 1:
            return code
        _conclude(directory.path, backend.name, prices, why, as_json=arguments.json)
    return code


def _price_list(backend: Backend, loaded: Config, kind: Kind) -> tuple[PriceList | None, str]:
    """The kernel's times, before the server takes the GPU; or why there are none."""
    if kind == "builtin":
        return None, "the built-in engine's kernel is not timed alone"
    from core import files
    from core.backends import pricing
    from core.routing.price import PriceList

    tell(f"~ {backend.name}: timing the MoE kernel alone, if it is not known yet")
    file, why = pricing.price_list(backend, loaded.model)
    if file is None:
        tell(f"! {backend.name}: no price list: {why}")
        return None, why
    tell(f"~ {backend.name}: price list {file}")
    return files.read(file, PriceList), ""


# --- the sweep ---


def _sweep(loaded: Config, backend: Backend, kind: Kind, largest: int) -> Config:
    """The experiment: every size once with its natural routing and once at each dose."""
    from msgspec.structs import replace

    experiment = replace(
        loaded.experiment,
        name=f"calibrate-{backend.name}"[:80],
        num_prompts=largest,
        input_len=min(INPUT_LEN, loaded.model.max_model_len - OUTPUT_LEN),
        output_len=OUTPUT_LEN,
        request_rate="inf",
        arrival="poisson",
        max_concurrency=0,
        starts=1,
        split=False,
        repeats=1,
        ramp_up_s=0.0,
        shuffle=True,
        interleave=False,
        warmup_requests=largest,
    )
    return replace(
        loaded, experiment=experiment, backends=(backend,), dose=_doses(backend, loaded, kind)
    )


def _doses(backend: Backend, loaded: Config, kind: Kind) -> Forcing:
    """Levels within reach; patterns that keep all experts active, and that leave most idle."""
    from core.backends import modelfiles
    from core.builtin.weights import Shape
    from core.experiment.dose import Pattern
    from core.experiment.tables import Forcing

    builtin = Shape()
    known = (builtin.experts, builtin.top_k) if kind == "builtin" else None
    experts, top_k = known or modelfiles.moe_shape(loaded.model.id, backend.env) or (8, 2)
    most = math.sqrt(experts / top_k - 1)
    levels = [round(share * most, 2) for share in SHARES]
    by_rank = backend.expert_parallel and backend.ranks > 1
    patterns: list[Pattern] = ["hot-experts", "few-experts"]
    if by_rank and min(backend.ranks, experts // backend.ranks) <= top_k:
        patterns.append("hot-rank")  # as many hot experts, or fewer: the levels are within reach
    return Forcing(levels=levels, patterns=patterns)


def _sizes(backend: Backend) -> list[int]:
    room = backend.max_num_seqs * backend.data_parallel
    return [size for size in SIZES if size <= room] or [room]


def _prompts(loaded: Config) -> list[Prompt]:
    """The prompts of all datasets, one of each in turn: they only have to be ordinary."""
    from core.workload import dataset, formats

    found = [
        formats.read(path, dataset.index_of(path, place)).prompts
        for place, path in enumerate(loaded.dataset_paths, 1)
    ]
    if not found:
        raise DatasetError(f"{loaded.path}: [experiment], datasets: none to take prompts from")
    longest = max(map(len, found))
    return [own[i] for i in range(longest) for own in found if i < len(own)]


def _with_datasets(sweep: Config, folder: Path, prompts: list[Prompt], sizes: list[int]) -> Config:
    """A dataset of each size, in the run directory."""
    from msgspec.structs import replace

    place = folder / "prompts"
    place.mkdir()
    files = tuple(_dataset(place / f"{size:03d}.jsonl", prompts, size) for size in sizes)
    return replace(sweep, dataset_paths=tuple(file.absolute() for file in files))


def _dataset(file: Path, prompts: list[Prompt], size: int) -> Path:
    rows = (json.dumps({"text": prompts[i % len(prompts)].text}) for i in range(size))
    file.write_text("".join(f"{row}\n" for row in rows))
    return file


# --- what it shows ---


def _conclude(
    path: Path, backend: str, prices: PriceList | None, why: str, *, as_json: bool
) -> None:
    from core import files
    from core.analysis import calibration
    from core.rundir import about as run_json

    found = _fitted(path, backend, prices, why)
    written = calibration.write(found, path)
    if as_json:
        print(files.formatted(found).decode(), end="")
    else:
        for line in _lines(found):
            print(line)
    tell(f"wrote {written}")
    try:
        tell(f"wrote {calibration.keep(found, run_json.read(path))}")
    except FileError as error:
        tell(f"not kept for later runs: {error}; imbalance and advise take --calibration {path}")


def _fitted(path: Path, backend: str, prices: PriceList | None, why: str) -> Calibration:
    from core.analysis import cost_model, step_sample
    from core.analysis.calibration import Calibration
    from core.routing import price
    from core.rundir import about as run_json

    fitted = price.fit(prices) if prices else None
    sample = step_sample.of_backend(path, backend, prices=fitted, forced=True)
    return Calibration(
        backend=backend,
        engine=run_json.read(path).engine,
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        price_list=prices,
        no_prices=why,
        decode=cost_model.fit(sample, "decode"),
        prefill=cost_model.fit(sample, "prefill"),
    )


def _lines(found: Calibration) -> Iterator[str]:
    from core.analysis import cost_sentences as cost

    for model in (found.decode, found.prefill):
        yield from cost.in_words(model, found.backend)
    yield ""
    rows = [cost.QUALITY_HEAD, *cost.quality_rows(found.decode)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(cost.QUALITY_HEAD))]
    for row in rows:
        cells = zip(row, widths, strict=True)
        yield "  ".join(cell.ljust(width) for cell, width in cells).rstrip()
