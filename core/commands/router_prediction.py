"""`gatescope predict --model`: what a model's own router is expected to do with datasets."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core import terminal
from core.errors import BAD_USAGE, DatasetError, NoDataError, UsageError
from core.terminal import complain, shown, tell

if TYPE_CHECKING:
    from core.analysis.step_forecast import Timer
    from core.experiment.config import Config
    from core.experiment.tables import Backend
    from core.prediction.exact import Tell
    from core.prediction.stack import Stack
    from core.prediction.transfer import Decode
    from core.routing.expected import Expected, ExpectedPhase, Forecast, Planned
    from core.rundir.about import About

DUMMY = (
    '{}: [model] load_format = "dummy": random weights route by chance, so no prediction would hold'
    " for that server; serve the checkpoint"
)
BAR = 30  # columns
PER_LINE = 16  # experts


@dataclass(frozen=True, slots=True)
class Prompts:
    """The tokens of each file's prompts."""

    by_file: Mapping[str, Sequence[Sequence[int]]]

    def joined(self) -> list[Sequence[int]]:
        return [prompt for prompts in self.by_file.values() for prompt in prompts]


def run(arguments: argparse.Namespace) -> int:
    """0 if every file was predicted, 1 if some could not be read, BAD_USAGE if none could."""
    if arguments.mode != "exact" and not arguments.learn:
        raise UsageError(f"--mode {arguments.mode}: --learn RUN_DIR, a recorded run, is needed")
    if arguments.layers and arguments.mode != "exact":
        raise UsageError("--layers is of --mode exact; leave it out")
    if arguments.run:
        return _into_run(arguments)
    model = opened(arguments.model, arguments.dtype)
    planned, count = _planned(arguments)
    prompts = _read(arguments.files, model, count)
    if not prompts.by_file:
        return BAD_USAGE
    found = predictions(arguments, model, prompts)(planned, _timer(arguments))
    if arguments.json:
        _print_json(found)
    else:
        print("\n\n".join(_lines(file, expected) for file, expected in found.items()))
    return 1 if len(found) < len(set(map(str, arguments.files))) else 0


def _into_run(arguments: argparse.Namespace) -> int:
    """Write predictions beside what a run measured, and say how they compare. 1 if some datasets
    could not be read, BAD_USAGE if none could."""
    from core.analysis import results
    from core.report import foretold
    from core.rundir import about as run_json
    from core.rundir import result

    about = run_json.read(arguments.run)
    _check_weights(about)
    if arguments.learn and arguments.learn.resolve() == arguments.run.resolve():
        raise UsageError("--learn: what is learned from a run foretells others, not the run itself")
    model = opened(arguments.model, arguments.dtype)
    runs = [
        (backend, label, one)
        for backend in about.config.backends
        for label, one in result.read_all(
            arguments.run / backend.name / "results_json"
        ).results.items()
        if one.dataset_path and not one.forced_routing and not one.replayed_routing
    ]
    sent = {Path(str(one.dataset_path)): len(one.input_lens) for _, _, one in runs}
    prompts = _read(list(sent), model, max(sent.values(), default=0))
    if not prompts.by_file:
        return BAD_USAGE
    of = predictions(arguments, model, prompts)
    for backend in about.config.backends:
        timer = _timer_of(arguments, about, backend)
        found = of(planned_of(about.config, backend), timer)
        for own, label, one in runs:
            expected = found.get(str(Path(str(one.dataset_path))))
            if own is backend and expected:
                file = arguments.run / backend.name / "results_json" / f"{label}.json"
                result.write_predicted(file, expected)
    groups, _ = results.of_run_directory(arguments.run)
    for line in foretold.sentences(groups):
        print(line)
    return 1 if len(prompts.by_file) < len(sent) else 0


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


def _planned(arguments: argparse.Namespace) -> tuple[Planned, int | None]:
    """The steps that --backend is to run, and how many prompts of a dataset are sent; without it
    each prompt is a step of its own, and all are sent."""
    from core.experiment import config
    from core.routing.expected import Planned

    if not arguments.backend:
        return Planned(), None
    loaded = config.load(arguments.config)
    backend = next((b for b in loaded.backends if b.name == arguments.backend), None)
    if backend is None:
        names = ", ".join(b.name for b in loaded.backends)
        raise UsageError(f"--backend {arguments.backend}: {loaded.path} has {names}")
    if loaded.model.load_format == "dummy":
        raise UsageError(DUMMY.format(loaded.path))
    return planned_of(loaded, backend), loaded.experiment.num_prompts


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


def _read(files: Sequence[Path], model: Stack, count: int | None) -> Prompts:
    """A file that cannot be used is reported on stderr and left out."""
    from core.workload import dataset, formats

    found = {}
    for place, file in enumerate(files, 1):
        try:
            prompts = formats.read(file, dataset.index_of(file, place)).prompts[:count]
            found[str(file)] = [model.tokens(prompt.text) for prompt in prompts]
        except DatasetError as error:
            complain(str(error))
    return Prompts(found)


def predictions(
    arguments: argparse.Namespace, model: Stack, prompts: Prompts
) -> Callable[[Planned, Timer | None], dict[str, Expected]]:
    """Of each file, in steps as planned, and as long as a backend's take."""
    from core.routing import repeats

    if arguments.mode == "exact":
        whole = _exact(arguments, model, prompts.joined())
    else:
        whole = _learned(arguments, model, prompts.joined())
    parts, first = {}, 0
    for file, own in prompts.by_file.items():
        some = slice(first, first + len(own))
        parts[file] = replace(whole.of(some), repeats=repeats.of(own))
        first += len(own)
    decode, why = _decode(arguments.learn)
    of = _Datasets(model.name, arguments.mode, decode, why)
    return lambda planned, timer: {
        file: of.expected(part, planned, timer) for file, part in parts.items()
    }


def _exact(
    arguments: argparse.Namespace, model: Stack, prompts: Sequence[Sequence[int]]
) -> Forecast:
    from core.prediction import exact

    _tell_needs(model, prompts)
    return exact.route(model, prompts, arguments.layers, progress()).forecast()


def _learned(
    arguments: argparse.Namespace, model: Stack, prompts: Sequence[Sequence[int]]
) -> Forecast:
    """What a recorded run lets expect; says how far its own steps were off."""
    from core.prediction import heads, recorded

    learned = heads.learn(recorded.read(arguments.learn, model.tokens), model.gate_table())
    spread, of = arguments.mode == "calibrated", learned.recorded
    tell(
        f"learned from {len(of.prompts)} steps of {of.tokens.sum()} prompt tokens; each predicted"
        f" from the others, the excess CV² of {heads.GROUP} is off by"
        f" {learned.error(spread=spread):.3f} in the mean"
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


@dataclass(frozen=True, slots=True)
class _Datasets:
    """What all predictions share. `why`: decode is not predicted."""

    model: str
    mode: str
    decode: Decode | None
    why: str

    def expected(self, of: Forecast, planned: Planned, timer: Timer | None) -> Expected:
        from core.routing import expected

        shares, numbers = of.shares(), list(of.layer_numbers)
        after = decode = None
        if self.decode:
            after = self.decode.shares(shares, numbers)
            decode = self.decode.phase(after, of.top_k, planned)
        found = expected.Expected(
            model=self.model,
            mode=self.mode,
            prompts=len(of.tokens),
            tokens=int(of.tokens.sum()),
            layer_numbers=numbers,
            loads=shares.tolist(),
            prefill=expected.prefill(of, planned),
            decode=decode,
            decode_reason=self.why or None,
        )
        return timer.timed(found, of, after, planned) if timer else found


def _timer(arguments: argparse.Namespace) -> Timer | None:
    """Of --backend as --config has it, where --calibration says what its steps cost."""
    from core.analysis import calibration
    from core.analysis.step_forecast import Timer
    from core.experiment import config

    if not arguments.calibration:
        return None
    if not arguments.backend:
        raise UsageError("--calibration: name the backend whose steps are timed, with --backend")
    loaded, known = config.load(arguments.config), calibration.read(arguments.calibration)
    backend = next(b for b in loaded.backends if b.name == arguments.backend)
    ranks = backend.ranks if backend.expert_parallel else 1
    return Timer(known, None, ranks, loaded.experiment.output_len)


def _timer_of(arguments: argparse.Namespace, about: About, backend: Backend) -> Timer | None:
    """Of a run's backend, by --calibration or its own, where there is one."""
    from core.analysis import calibration
    from core.analysis.step_forecast import Timer

    given = arguments.calibration
    known = calibration.read(given) if given else calibration.of_backend(about, backend.name)
    if known is None:
        return None
    note = about.servers.get(backend.name)
    ranks = backend.ranks if backend.expert_parallel else 1
    return Timer(known, note.kernel if note else None, ranks, about.config.experiment.output_len)


# --- progress ---


def _tell_needs(model: Stack, prompts: Sequence[Sequence[int]]) -> None:
    from core.prediction import exact

    layer, hidden = exact.needs(model, prompts)
    tokens = sum(map(len, prompts))
    tell(
        f"{model.name}: {len(prompts)} prompts, {tokens} tokens through {model.depth} layers;"
        f" memory: at most {_size(layer)} for a layer, {_size(hidden)} for the hidden states"
    )


def _size(count: int) -> str:
    gib = count / (1 << 30)
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{count / (1 << 20):.1f} MiB"


def progress() -> Tell:
    """A bar on a terminal that can redraw a line; a line a layer elsewhere."""
    redraws = sys.stderr.isatty() and not terminal.is_dumb()

    def told(done: int, layers: int, seconds: float) -> None:
        left = terminal.clock(seconds / done * (layers - done))
        line = f"layer {done} of {layers}, {left} left"
        if not redraws:
            tell(line)
            return
        filled = BAR * done // layers
        end = "\n" if done == layers else ""
        bar = f"{'█' * filled}{'░' * (BAR - filled)}"
        print(f"\r{bar} {line}\x1b[K", end=end, file=sys.stderr, flush=True)

    return told


# --- results ---


def _print_json(found: Mapping[str, Expected]) -> None:
    from core import files

    sys.stdout.write(files.formatted(found).decode())


def _lines(file: str, of: Expected) -> str:
    """The figures of one dataset, and each layer's loads, 100 being an even share."""
    head = f"{file}: {of.prompts} prompts, {of.tokens} tokens; {of.mode}"
    phases = [_phase("prefill", of.prefill)]
    if of.decode:
        phases.append(_phase("decode", of.decode))
    else:
        phases.append(f"  decode   – ({of.decode_reason})")
    loads = ["  load of each expert, % of an even share"]
    for number, shares in zip(of.layer_numbers, of.loads, strict=True):
        values = [f"{share * len(shares) * 100:4.0f}" for share in shares]
        rows = [" ".join(values[i : i + PER_LINE]) for i in range(0, len(values), PER_LINE)]
        loads += [f"  {f'layer {number}' if not i else '':<9}{row}" for i, row in enumerate(rows)]
    times = [f"{k} {v:.1f} ms" for k, v in (("TTFT", of.ttft_ms), ("TPOT", of.tpot_ms)) if v]
    why = f" ({of.times_reason})" if of.times_reason else ""
    timed = [f"  sent at once: {', '.join(times) or '–'}{why}"] if times or why else []
    return "\n".join([head, *phases, *timed, *loads])


def _phase(name: str, of: ExpectedPhase) -> str:
    ends = of.excess_cv_interval
    interval = f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
    why = f" ({of.excess_cv_reason})" if of.excess_cv_reason else ""
    parts = [
        f"excess CV {shown(of.excess_cv, '.3f')}{interval}{why}",
        f"noise floor {shown(of.noise_floor, '.3f')}",
        f"{of.active_experts:.1f} active experts",
    ]
    if of.busiest_rank_experts is not None:
        parts.append(f"{of.busiest_rank_experts:.1f} on the busiest rank")
        parts.append(f"rank max/mean {of.rank_imbalance:.2f}")
    if of.step_ms is not None:
        parts.append(f"{of.step_ms:.2f} ms a step")
    return f"  {name:<9}at {of.tokens:.0f} tokens a step: {', '.join(parts)}"
