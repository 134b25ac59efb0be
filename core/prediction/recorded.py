"""The prefill of a recorded run: each step's loads, and the prompts that were in it; and what its
datasets loaded in prefill and in decode.

A gate log says how many prompt tokens a step had, not whose. Requests are prefilled in the order of
their first tokens, so the sums of prompt lengths and of steps' prompt tokens are laid side by side:
where both meet, a group of steps holds exactly a group of prompts. Steps with decode tokens in them
are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.errors import FileError, GateLogError, NoDataError
from core.experiment import dose
from core.routing import folder as gate_folder
from core.routing.gatelog import GateLog
from core.rundir import about as run_json
from core.rundir import result
from core.rundir.result import Result
from core.stats import arrays
from core.stats.arrays import Floats, Ints
from core.workload import formats

MIN_RUNS = 4
Tokenize = Callable[[str], list[int]]
Group = tuple[tuple[int, ...], ...]  # the tokens of prompts that ran together


@dataclass(frozen=True, slots=True)
class Recorded:
    """Groups of steps, as one step each: the tokens of its prompts, its loads. `datasets`: the
    steps of each, by their places; a step may be of several."""

    prompts: tuple[Group, ...]  # by step
    loads: Floats  # [steps, layers, experts]
    top_k: int
    layer_numbers: tuple[int, ...]
    datasets: tuple[tuple[int, ...], ...] = ()

    @property
    def tokens(self) -> Ints:
        return np.array([sum(map(len, step)) for step in self.prompts])

    def of(self, places: Ints) -> Recorded:
        """Some of the steps, of no dataset."""
        prompts = tuple(self.prompts[place] for place in places)
        return replace(self, prompts=prompts, loads=self.loads[places], datasets=())


@dataclass(frozen=True, slots=True)
class Phases:
    """Runs of a dataset each: the shares of its layers' picks, and the excess² of its decode."""

    prefill: Floats  # [runs, layers, experts]
    decode: Floats
    measured: Floats  # [runs]
    layer_numbers: tuple[int, ...]


def read(run_dir: Path, tokenize: Tokenize) -> Recorded:
    """All backends' naturally routed runs; a group of prompts that several runs had counts once.
    Of fewer than MIN_RUNS datasets, as many parts of their steps stand for datasets. NoDataError if
    fewer steps can be matched to their prompts; FileError for no run directory."""
    places: dict[Group, int] = {}
    loads: list[Floats] = []
    datasets: dict[str, dict[int, None]] = {}
    shape: tuple[int, tuple[int, ...]] = (0, ())
    for backend, label, one, log in _runs(run_dir):
        shape = (log.top_k, log.numbers)
        dataset = one.dataset_path
        prompts = _in_order(backend, label, dataset, tokenize) if dataset else []
        for group, own in _groups(prompts, log):
            place = places.setdefault(group, len(loads))
            loads += [own] if place == len(loads) else []
            datasets.setdefault(str(dataset), {})[place] = None
    if len(loads) < MIN_RUNS:
        raise NoDataError(
            f"{run_dir}: {len(loads)} prefill steps can be matched to their prompts, {MIN_RUNS} are"
            " needed; max_concurrency = 1 tells steps apart best"
        )
    steps = list(map(tuple, datasets.values()))
    if len(steps) < MIN_RUNS:
        parts = np.array_split(np.arange(len(loads)), MIN_RUNS)
        steps = [tuple(part.tolist()) for part in parts]
    return Recorded(tuple(places), np.array(loads, np.float64), *shape, tuple(steps))


def phases(run_dir: Path) -> Phases:
    """All backends' naturally routed runs whose decode has an excess. NoDataError for fewer than
    MIN_RUNS; FileError for no run directory."""
    found: list[tuple[Floats, Floats, float]] = []
    numbers: tuple[int, ...] = ()
    for _, _, one, log in _runs(run_dir):
        measured = one.measured_imbalance and one.measured_imbalance.decode
        if measured and measured.excess_squared is not None:
            found.append((*_shares(log), measured.excess_squared))
            numbers = log.numbers
    if len(found) < MIN_RUNS:
        raise NoDataError(
            f"{run_dir}: {len(found)} runs have decode steps of several tokens, {MIN_RUNS} are"
            " needed"
        )
    prefill, decode, squares = zip(*found, strict=True)
    return Phases(np.array(prefill), np.array(decode), np.array(squares), numbers)


def _shares(log: GateLog) -> tuple[Floats, Floats]:
    """Of prefill and of decode [layers, experts]. Decode tokens in prompt steps count as those of
    other steps."""
    prompt = log.columns["prefill_tokens"] > 0
    with_prompts, decode = (
        log.where(of).loads.astype(np.float64).sum(axis=0) for of in (prompt, ~prompt)
    )
    after = decode / decode.sum(axis=-1, keepdims=True)
    also = log.top_k * log.columns["decode_tokens"][prompt].sum()
    prefill = np.maximum(with_prompts - also * after, 0.0)
    return prefill / prefill.sum(axis=-1, keepdims=True), after


def _runs(run_dir: Path) -> Iterator[tuple[Path, str, Result, GateLog]]:
    """Backend, label, result and steps of each naturally routed run."""
    for name in run_json.read(run_dir).backends:
        backend = run_dir / name
        results = result.read_all(backend / "results_json").results
        for start in gate_folder.starts(backend):
            try:
                log = gate_folder.read(start)
            except (GateLogError, OSError):
                continue  # of a start that failed
            for label, one in results.items():
                own = log.of(label)
                if not dose.of_label(label) and len(own.tokens):
                    yield backend, label, one, own


def _in_order(backend: Path, label: str, dataset: str, tokenize: Tokenize) -> list[tuple[int, ...]]:
    """The prompts of one run in the order of their first tokens; none if some request failed, or
    if the server counted other tokens than `tokenize` gives. FileError for a file of requests that
    is damaged."""
    file = backend / "requests" / f"{label}.npz"
    if not file.is_file():
        return []
    try:
        requests = arrays.load(file)
        first, counted, ok = (requests[k] for k in ("t_first_ns", "prompt_tokens", "ok"))
        if not first.shape == counted.shape == ok.shape == (len(first),):
            raise ValueError("columns of different lengths")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{file}: not as gatescope writes it: {error}") from None
    texts = formats.read(Path(dataset), label).prompts[: len(first)]
    prompts = [tuple(tokenize(prompt.text)) for prompt in texts]
    if not ok.all() or [len(prompt) for prompt in prompts] != counted.tolist():
        return []
    return [prompts[place] for place in np.argsort(first, kind="stable")]


def _groups(prompts: Sequence[tuple[int, ...]], log: GateLog) -> list[tuple[Group, Floats]]:
    """Prompts and loads of each group of steps that holds these prompts and no others."""
    steps = log.where(log.columns["prefill_tokens"] > 0)
    asked = np.cumsum([len(prompt) for prompt in prompts], dtype=np.int64)
    seen = np.cumsum(steps.columns["prefill_tokens"])
    if not len(asked) or not len(seen) or asked[-1] != seen[-1]:
        return []
    met = np.intersect1d(asked, seen)
    p_end, s_end = np.searchsorted(asked, met) + 1, np.searchsorted(seen, met) + 1
    p_start, s_start = np.append(0, p_end[:-1]), np.append(0, s_end[:-1])
    return [
        (tuple(prompts[p0:p1]), steps.loads[s0:s1].astype(np.float64).sum(axis=0))
        for p0, p1, s0, s1 in zip(p_start, p_end, s_start, s_end, strict=True)
        if not steps.columns["decode_tokens"][s0:s1].any()
    ]
