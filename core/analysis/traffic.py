"""The steps of a log that a placement is made from and judged on, prefill and decode apart, at even
distances over all of it: as many as fit in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from core.experiment import plan
from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing.gatelog import GateLog
from core.routing.meter import WARMUP
from core.stats.arrays import Bools, Floats, Ints

PREFILL, DECODE = "prefill", "decode"
MAX_COUNTS = 1 << 27  # of one phase
MAX_STEPS = 1 << 13


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of one phase, in order. `every`: one in so many of the log's was kept. `by_rank`: as it
    ran, loads by rank [steps, layers, ranks]; None without expert parallelism. `dataset` [steps]:
    a number for each dataset; -1 where a step has tokens of none or of several."""

    loads: npt.NDArray[np.integer[Any]]  # [steps, layers, experts]
    tokens: Ints
    start_ns: Ints
    duration_ns: Ints
    by_rank: Floats | None
    placement: tuple[int, ...]
    numbers: tuple[int, ...]
    kernel: Kernel | None
    dataset: Ints
    every: int = 1

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def ranks(self) -> int:
        """That ran; 1 without expert parallelism."""
        return 1 if self.by_rank is None else int(self.by_rank.shape[-1])

    @property
    def has_times(self) -> bool:
        return bool(self.duration_ns.any())

    @property
    def minutes(self) -> float:
        return float(self.start_ns[-1] - self.start_ns[0]) / 60e9 if len(self) else 0.0

    def part(self, first: float, last: float) -> Steps:
        """From one share of the steps to another: `part(0, 0.5)` is the first half."""
        return self.where(slice(round(first * len(self)), round(last * len(self))))

    def where(self, own: slice | Bools) -> Steps:
        """Those steps alone."""
        return replace(
            self,
            loads=self.loads[own],
            tokens=self.tokens[own],
            start_ns=self.start_ns[own],
            duration_ns=self.duration_ns[own],
            by_rank=None if self.by_rank is None else self.by_rank[own],
            dataset=self.dataset[own],
        )


@dataclass(slots=True)
class _Kept:
    """The steps of one phase that are kept so far: those whose number `every` divides."""

    every: int = 1
    seen: int = 0
    parts: list[GateLog] = field(default_factory=list)

    def add(self, log: GateLog) -> None:
        number = self.seen + np.arange(len(log.tokens))
        self.seen += len(log.tokens)
        self.parts.append(log.where(number % self.every == 0))

    def thin(self, most: int) -> None:
        """Keep every other one while there are more than `most`."""
        while sum(len(part.tokens) for part in self.parts) > most:
            first = 0
            for place, part in enumerate(self.parts):
                number = first + np.arange(len(part.tokens))
                first += len(part.tokens)
                self.parts[place] = part.where(number % 2 == 0)
            self.every *= 2


def read(parts: Iterable[GateLog]) -> dict[str, Steps]:
    """The phases that have steps. Where a log does not say which tokens are of prompts, all steps
    are decode."""
    kept = {PREFILL: _Kept(), DECODE: _Kept()}
    for log in parts:
        whole = log.where(log.tokens > 0)
        prompt = whole.columns["prefill_tokens"] > 0
        most = min(MAX_STEPS, MAX_COUNTS // max(log.loads[:1].size, 1))
        for name, own in ((PREFILL, prompt), (DECODE, ~prompt)):
            kept[name].add(whole.where(own))
            kept[name].thin(max(most, 2))
    return {name: _joined(one) for name, one in kept.items() if one.seen}


def _joined(kept: _Kept) -> Steps:
    parts = [part for part in kept.parts if len(part.tokens)]
    first = parts[0]
    columns = {
        name: np.concatenate([part.columns[name] for part in parts])
        for name in ("tokens", "start_ns", "duration_ns")
    }
    by_rank = [part.rank_loads() for part in parts]
    known = [one for one in by_rank if one is not None]
    return Steps(
        np.concatenate([part.loads for part in parts]),
        columns["tokens"],
        columns["start_ns"],
        columns["duration_ns"],
        np.concatenate(known) if len(known) == len(parts) else None,
        first.placement,
        first.numbers,
        first.kernel,
        _datasets(parts),
        kept.every,
    )


def _datasets(parts: Sequence[GateLog]) -> Ints:
    """The dataset of each step, by the labels of its requests."""
    labels = sorted({label for part in parts for label in part.segments} - {"", WARMUP})
    names = sorted({plan.dataset_of(label) for label in labels})
    found = [np.full(len(part.tokens), -1) for part in parts]
    for part, numbers in zip(parts, found, strict=True):
        for number, name in enumerate(names):
            own = [part.segments[x] for x in part.segments if plan.dataset_of(x) == name]
            if own:
                numbers[np.sum(own, axis=0) == part.tokens] = number
    return np.concatenate(found)
