"""The measures of a run that have an interval, from its sums over steps and from resamples of
them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from core.routing.blocks import ALL_STEPS, Blocks, StepSums
from core.routing.steps import CHUNK, cv
from core.stats import bootstrap
from core.stats.arrays import Floats
from core.stats.bootstrap import Interval


@dataclass(frozen=True, slots=True)
class Measures:
    """Scalars of one run, or [resamples]. None: not known of this run."""

    per_step_cv: Floats
    aggregated_cv: Floats | None
    layer_cv: Floats
    rank_imbalance: Floats | None
    expert_imbalance: Floats
    entropy: Floats
    hottest_share: Floats

    def intervals(self, drawn: Measures, blocks: int) -> dict[str, Interval | None]:
        """The 95 % interval of each known measure, by name; `drawn`: the same in resamples."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: bootstrap.interval(float(value), getattr(drawn, name), blocks)
            for name, value in known.items()
            if value is not None
        }


def of(sums: StepSums, counts: npt.NDArray[np.floating[Any]], small: Floats) -> Measures:
    """From sums over steps: figures [...], loads [..., layers, experts], and loads of small steps
    [..., experts]."""
    load = counts.sum(axis=-1, keepdims=True)
    share = counts / np.where(load > 0, load, 1)
    return Measures(
        per_step_cv=_ratio(sums.cv, sums.layers),
        aggregated_cv=cv(small),
        layer_cv=cv(counts).mean(axis=-1),
        rank_imbalance=_ratio(sums.rank_ratio, sums.layers),
        expert_imbalance=_ratio(sums.expert_ratio, sums.layers),
        entropy=_entropy(share).mean(axis=-1),
        hottest_share=share.max(axis=-1).mean(axis=-1),
    )


def _ratio(sums: Floats, layers: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums / layers)


def _entropy(share: npt.NDArray[np.floating[Any]]) -> Floats:
    """Entropy over the last axis, in units of an even distribution's."""
    logs = np.zeros_like(share)
    np.log(share, out=logs, where=share > 0)
    return np.asarray(-(share * logs).sum(axis=-1) / np.log(max(share.shape[-1], 2)))


@dataclass(frozen=True, slots=True)
class Resampled:
    """What each resample of a run's blocks shows."""

    rows: Floats  # [resamples, 2 × WIDTH], as in Blocks
    small: Floats  # [resamples, experts]
    measures: Measures

    @classmethod
    def of(cls, blocks: Blocks) -> Resampled:
        draws = bootstrap.weights(len(blocks))
        rows, small = draws @ blocks.rows, draws @ blocks.small
        return cls(rows, small, _in_parts(draws, rows, blocks.counts, small))


def _in_parts(draws: Floats, rows: Floats, counts: Floats, small: Floats) -> Measures:
    """The measures of every resample, a few at a time, so that their loads by layer and expert stay
    in a processor's cache; float32 is precise enough for their spread."""
    flat = counts.reshape(len(counts), -1).astype(np.float32)
    narrow, few = draws.astype(np.float32), max(1, CHUNK // flat.shape[1])
    parts = []
    for some in (slice(place, place + few) for place in range(0, len(draws), few)):
        by_layer = (narrow[some] @ flat).reshape(-1, *counts.shape[1:])
        parts.append(of(StepSums.of(rows[some, ALL_STEPS]), by_layer, small[some]))
    names = [f.name for f in fields(Measures)]
    return Measures(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
