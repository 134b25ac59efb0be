"""The prefill of a recorded run: each step's loads, and the prompts that were in it.

A gate log says how many prompt tokens a step had, not whose. Requests are prefilled in the order of
their first tokens, so the sums of prompt lengths and of steps' prompt tokens are laid side by side:
where both meet, a group of steps holds exactly a group of prompts. Steps with decode tokens in them
are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import GateLogError, NoDataError
from core.experiment import dose
from core.routing import folder as gate_folder
from core.routing.gatelog import GateLog
from core.rundir import about as run_json
from core.rundir import result
from core.stats.arrays import Floats, Ints
from core.workload import formats

Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Groups of steps, as one step each: the tokens of its prompts, its loads."""

    prompts: tuple[tuple[tuple[int, ...], ...], ...]  # by step
    loads: Floats  # [steps, layers, experts]
    top_k: int
    layer_numbers: tuple[int, ...]

    @property
    def tokens(self) -> Ints:
        return np.array([sum(map(len, step)) for step in self.prompts])


def read(run_dir: Path, tokenize: Tokenize) -> Recorded:
    """All backends' naturally routed runs; a group of prompts that several runs had counts once.
    NoDataError where no step can be told whose tokens it had; FileError for no run directory."""
    about = run_json.read(run_dir)
    found: dict[tuple[tuple[int, ...], ...], Floats] = {}
    shape: tuple[int, tuple[int, ...]] | None = None
    for backend in about.backends:
        for start in gate_folder.starts(run_dir / backend):
            try:
                log = gate_folder.read(start)
            except (GateLogError, OSError):
                continue  # of a start that failed
            shape = shape or (log.top_k, log.numbers)
            results = result.read_all(run_dir / backend / "results_json").results
            for label, one in results.items():
                if not dose.of_label(label) and one.dataset_path:
                    prompts = _in_order(run_dir / backend, label, one.dataset_path, tokenize)
                    found |= dict(_groups(prompts, log.of(label)))
    if not found or shape is None:
        raise NoDataError(
            f"{run_dir}: no prefill step of it can be told whose prompts it had; record a run with"
            " max_concurrency = 1"
        )
    return Recorded(tuple(found), np.array(list(found.values()), np.float64), *shape)


def _in_order(backend: Path, label: str, dataset: str, tokenize: Tokenize) -> list[tuple[int, ...]]:
    """The prompts of one run in the order of their first tokens; none if some request failed, or
    if the server counted other tokens than `tokenize` gives."""
    try:
        with np.load(backend / "requests" / f"{label}.npz") as requests:
            first, counted, ok = (requests[k] for k in ("t_first_ns", "prompt_tokens", "ok"))
        texts = formats.read(Path(dataset), label).prompts[: len(first)]
    except OSError:
        return []
    prompts = [tuple(tokenize(prompt.text)) for prompt in texts]
    if not ok.all() or [len(prompt) for prompt in prompts] != counted.tolist():
        return []
    return [prompts[place] for place in np.argsort(first, kind="stable")]


def _groups(
    prompts: Sequence[tuple[int, ...]], log: GateLog
) -> list[tuple[tuple[tuple[int, ...], ...], Floats]]:
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
