"""Forced-routing runs with a known response to skew."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from core.analysis.dose_sample import DoseRun

LEVELS = (0.0, 0.25, 0.5, 1.0, 1.5)
TPOT = "mean_tpot_ms"
Response = Callable[[float], float]


def runs(
    response: Response,
    *,
    backend: str = "all2all",
    pattern: str = "hot-rank",
    levels: Sequence[float] = LEVELS,
    datasets: int = 1,
    repeats: int = 3,
    noise: float = 0.0,
    rank: Response | None = None,
    metric: str = TPOT,
    seed: int = 0,
) -> list[DoseRun]:
    """Runs at every level. `response` and `rank` are functions of the recorded CV, which is the
    level. A dataset shifts all of its runs by the same amount."""
    rng = np.random.default_rng([seed, *backend.encode(), *pattern.encode()])
    shift = np.random.default_rng(seed).normal(0, 2 * noise, datasets)  # the same at every backend
    return [
        DoseRun(
            backend=backend,
            label=_label(d, r, pattern, level),
            pattern=pattern,
            level=level,
            cv=level,
            rank=rank(level) if rank else None,
            values={metric: response(level) + shift[d] + float(rng.normal(0, noise))},
        )
        for d in range(datasets)
        for r in range(1, repeats + 1)
        for level in levels
    ]


def _label(dataset: int, repeat: int, pattern: str, level: float) -> str:
    natural = f"{dataset:03d}-r{repeat}" if repeat > 1 else f"{dataset:03d}"
    return f"{natural}~{pattern}~{level:g}" if pattern else natural
