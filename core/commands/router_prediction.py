"""`gatescope predict --model`: what a model's own router is expected to do with datasets."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core import terminal
from core.errors import BAD_USAGE, DatasetError, UsageError
from core.terminal import complain, shown, tell

if TYPE_CHECKING:
    from core.prediction.exact import Tell
    from core.prediction.stack import Stack
    from core.routing.expected import Expected, ExpectedPhase, Forecast, Planned

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
    if (arguments.mode == "exact") == bool(arguments.learn):
        raise UsageError(
            f"--mode {arguments.mode}: table and calibrated need --learn RUN_DIR, exact takes none"
        )
    if arguments.layers and arguments.mode != "exact":
        raise UsageError("--layers is of --mode exact; leave it out")
    model = opened(arguments.model, arguments.dtype)
    planned, count = _planned(arguments)
    prompts = _read(arguments.files, model, count)
    if not prompts.by_file:
        return BAD_USAGE
    found = _expected(arguments, model, prompts, planned)
    if arguments.json:
        _print_json(found)
    else:
        print("\n\n".join(_lines(file, expected) for file, expected in found.items()))
    return 1 if len(found) < len(set(map(str, arguments.files))) else 0


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
        raise UsageError(
            f'{loaded.path}: [model] load_format = "dummy": random weights route by chance, so no'
            " prediction would hold for that server; serve the checkpoint, or leave --backend out"
        )
    asked = loaded.experiment
    at_once = min(asked.max_concurrency or asked.num_prompts, backend.max_num_seqs)
    return (
        Planned(
            prompts=at_once if asked.request_rate == "inf" else 1,
            tokens=backend.max_num_batched_tokens,
            decode=at_once,
            ranks=backend.ranks if backend.expert_parallel else 1,
        ),
        asked.num_prompts,
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


def _expected(
    arguments: argparse.Namespace, model: Stack, prompts: Prompts, planned: Planned
) -> dict[str, Expected]:
    from core.routing import repeats

    if arguments.mode == "exact":
        whole = _exact(arguments, model, prompts.joined())
    else:
        whole = _learned(arguments, model, prompts.joined())
    found, first = {}, 0
    for file, own in prompts.by_file.items():
        part = replace(whole.of(slice(first, first + len(own))), repeats=repeats.of(own))
        first += len(own)
        found[file] = _of_dataset(model, arguments.mode, part, planned)
    return found


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


def _of_dataset(model: Stack, mode: str, forecast: Forecast, planned: Planned) -> Expected:
    from core.routing import expected

    return expected.Expected(
        model=model.name,
        mode=mode,
        prompts=len(forecast.tokens),
        tokens=int(forecast.tokens.sum()),
        layer_numbers=list(forecast.layer_numbers),
        loads=forecast.shares().tolist(),
        prefill=expected.prefill(forecast, planned),
        decode_reason="prefill alone was predicted",
    )


# --- what is told while it runs ---


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
    return "\n".join([head, *phases, *loads])


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
    return f"  {name:<9}at {of.tokens:.0f} tokens a step: {', '.join(parts)}"
