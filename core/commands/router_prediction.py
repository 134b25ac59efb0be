"""`gatescope predict --model`: what a model's own router is expected to do with datasets."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands import prediction_lines as lines
from core.errors import BAD_USAGE, DatasetError, NoDataError, UsageError
from core.terminal import complain, tell

if TYPE_CHECKING:
    from core.analysis.calibration import Calibration
    from core.analysis.step_forecast import Timer
    from core.experiment.config import Config
    from core.experiment.tables import Backend
    from core.prediction.stack import Stack
    from core.prediction.transfer import Decode
    from core.recorder.gatescope_recorder.kernel import Kernel
    from core.routing.expected import Expected, Forecast, Planned
    from core.rundir.about import About

    Prompts = Mapping[str, Sequence[Sequence[int]]]  # the tokens of each file's
    Predict = Callable[[Planned, Timer | None], dict[str, Expected]]

DUMMY = (
    '{}: [model] load_format = "dummy": random weights route by chance, so no prediction would hold'
    " for that server; serve the checkpoint"
)


def run(arguments: argparse.Namespace) -> int:
    """0 if every file was predicted, 1 if some could not be read, BAD_USAGE if none could."""
    if arguments.mode != "exact" and not arguments.learn:
        raise UsageError(f"--mode {arguments.mode}: --learn RUN_DIR, a recorded run, is needed")
    if arguments.layers and arguments.mode != "exact":
        raise UsageError("--layers is of --mode exact; leave it out")
    return _into_run(arguments) if arguments.run else _of_files(arguments)


def _of_files(arguments: argparse.Namespace) -> int:
    """Print what is predicted of files, at the batches of --backend; without it each prompt is a
    step of its own."""
    model = opened(arguments.model, arguments.dtype)
    from core.analysis import calibration
    from core.routing.expected import Planned

    planned, timer, count = Planned(), None, None
    if arguments.backend:
        loaded, backend = _backend(arguments)
        planned, count = planned_of(loaded, backend), loaded.experiment.num_prompts
        if arguments.calibration:
            timer = _timer(calibration.read(arguments.calibration), None, loaded, backend)
    elif arguments.calibration:
        raise UsageError("--calibration: name the backend whose steps are timed, with --backend")
    prompts = _read(arguments.files, model, count)
    if not prompts:
        return BAD_USAGE
    found = predictions(arguments, model, prompts)(planned, timer)
    lines.show(found, as_json=arguments.json)
    return 1 if len(found) < len(set(map(str, arguments.files))) else 0


def _into_run(arguments: argparse.Namespace) -> int:
    """Write predictions beside what a run measured, and say how they compare. 1 if some datasets
    could not be read, BAD_USAGE if none could."""
    from core.rundir import about as run_json

    about = run_json.read(arguments.run)
    _check_weights(about)
    if arguments.learn and arguments.learn.resolve() == arguments.run.resolve():
        raise UsageError("--learn: what is learned from a run foretells others, not the run itself")
    model = opened(arguments.model, arguments.dtype)
    from core.analysis import calibration, results
    from core.report import foretold
    from core.rundir import result

    runs = {
        backend.name: {
            folder / f"{label}.json": one
            for label, one in result.read_all(folder).results.items()
            if one.dataset_path and not one.forced_routing and not one.replayed_routing
        }
        for backend in about.config.backends
        if (folder := arguments.run / backend.name / "results_json").is_dir()
    }
    sent = {
        Path(str(one.dataset_path)): len(one.input_lens)
        for own in runs.values()
        for one in own.values()
    }
    prompts = _read(list(sent), model, max(sent.values(), default=0))
    if not prompts:
        return BAD_USAGE
    of, given = predictions(arguments, model, prompts), arguments.calibration
    for backend in about.config.backends:
        known = calibration.read(given) if given else calibration.of_backend(about, backend.name)
        note = about.servers.get(backend.name)
        kernel = note.kernel if note else None
        timer = _timer(known, kernel, about.config, backend) if known else None
        found = of(planned_of(about.config, backend), timer)
        for file, one in runs.get(backend.name, {}).items():
            if expected := found.get(str(Path(str(one.dataset_path)))):
                result.write_predicted(file, expected)
    groups, _ = results.of_run_directory(arguments.run)
    for line in foretold.sentences(groups):
        print(line)
    return 1 if len(prompts) < len(sent) else 0


def _check_weights(about: About) -> None:
    asked = about.config.model
    if about.engine_kind == "builtin" and asked.weights != "trained":
        raise UsageError(f'its model had weights = "{asked.weights}", which route by chance')
    if about.engine_kind == "vllm" and asked.load_format == "dummy":
        raise UsageError(DUMMY.format("this run"))


def opened(model: str, dtype: str = "auto") -> Stack:
    """As `stack.open_model`; call it before anything imports NumPy."""
    # The built-in model's matrices are small: threads would cost more than they give. Torch counts
    # its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from core.prediction import stack

    return stack.open_model(model, dtype)


def _backend(arguments: argparse.Namespace) -> tuple[Config, Backend]:
    """The one that --backend names."""
    from core.experiment import config

    loaded = config.load(arguments.config)
    backend = next((b for b in loaded.backends if b.name == arguments.backend), None)
    if backend is None:
        names = ", ".join(b.name for b in loaded.backends)
        raise UsageError(f"--backend {arguments.backend}: {loaded.path} has {names}")
    if loaded.model.load_format == "dummy":
        raise UsageError(DUMMY.format(loaded.path))
    return loaded, backend


def planned_of(config: Config, backend: Backend) -> Planned:
    from core.routing.expected import Planned

    asked = config.experiment
    at_once = min(asked.max_concurrency or asked.num_prompts, backend.max_num_seqs)
    return Planned(
        prompts=at_once if asked.request_rate == "inf" else 1,
        tokens=backend.max_num_batched_tokens,
        decode=at_once,
        ranks=backend.ranks if backend.expert_parallel else 1,
    )


def _timer(known: Calibration, kernel: Kernel | None, config: Config, backend: Backend) -> Timer:
    from core.analysis.step_forecast import Timer

    ranks = backend.ranks if backend.expert_parallel else 1
    return Timer(known, kernel, ranks, config.experiment.output_len)


def _read(files: Sequence[Path], model: Stack, count: int | None) -> Prompts:
    """The first `count` of each file; one that cannot be used is reported on stderr and left
    out."""
    from core.workload import dataset, formats

    found = {}
    for place, file in enumerate(files, 1):
        try:
            prompts = formats.read(file, dataset.index_of(file, place)).prompts[:count]
            found[str(file)] = [model.tokens(prompt.text) for prompt in prompts]
        except DatasetError as error:
            complain(str(error))
    return found


def predictions(arguments: argparse.Namespace, model: Stack, prompts: Prompts) -> Predict:
    """Of each file, in steps as planned, and as long as a backend's take."""
    from core.routing import expected, repeats

    joined = [prompt for own in prompts.values() for prompt in own]
    whole = (_exact if arguments.mode == "exact" else _learned)(arguments, model, joined)
    parts, first = {}, 0
    for file, own in prompts.items():
        some = slice(first, first + len(own))
        parts[file] = replace(whole.of(some), repeats=repeats.of(own))
        first += len(own)
    transfer, why = _decode(arguments.learn)

    def of(part: Forecast, planned: Planned, timer: Timer | None) -> Expected:
        shares, numbers = part.shares(), list(part.layer_numbers)
        after = transfer.shares(shares, numbers) if transfer else None
        found = expected.Expected(
            model=model.name,
            mode=arguments.mode,
            prompts=len(part.tokens),
            tokens=int(part.tokens.sum()),
            layer_numbers=numbers,
            loads=shares.tolist(),
            prefill=expected.prefill(part, planned),
            decode=None
            if transfer is None or after is None
            else transfer.phase(after, part.top_k, planned),
            decode_reason=why or None,
        )
        return timer.timed(found, part, after, planned) if timer else found

    return lambda planned, timer: {file: of(part, planned, timer) for file, part in parts.items()}


def _exact(
    arguments: argparse.Namespace, model: Stack, prompts: Sequence[Sequence[int]]
) -> Forecast:
    from core.prediction import exact

    lines.tell_needs(model, prompts)
    return exact.route(model, prompts, arguments.layers, lines.progress()).forecast()


def _learned(
    arguments: argparse.Namespace, model: Stack, prompts: Sequence[Sequence[int]]
) -> Forecast:
    """What a recorded run lets expect; says how far its own datasets were off."""
    from core.prediction import heads, recorded

    learned = heads.learn(recorded.read(arguments.learn, model.tokens), model.gate_table())
    spread, of = arguments.mode == "calibrated", learned.recorded
    tell(
        f"learned from {len(of.prompts)} steps of {len(of.datasets)} datasets,"
        f" {of.tokens.sum()} prompt tokens; each dataset predicted from the others, its excess CV²"
        f" is off by {learned.error(spread=spread):.3f} in the mean"
    )
    return learned.predict(prompts, spread=spread)


def _decode(learn: Path | None) -> tuple[Decode | None, str]:
    """How prefill carries over to decode in a recorded run; or why that is not known."""
    from core.prediction import recorded, transfer

    if learn is None:
        return None, "--learn RUN_DIR, a recorded run, tells how prefill carries over to it"
    try:
        found = transfer.learn(recorded.phases(learn))
    except NoDataError as error:
        return None, str(error)
    low, high = found.slope_interval
    tell(
        f"decode has {found.slope:.2f} [{low:.2f}, {high:.2f}] of what sets a dataset's prefill"
        f" apart, by {len(found.errors)} runs; each predicted from the others, the excess CV² of"
        f" decode is off by {abs(found.errors).mean():.3f} in the mean"
    )
    return found, ""
