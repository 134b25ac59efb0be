"""Forced-routing runs whose response to skew is planted."""

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
    """`response` and `rank` of the recorded CV, which is the level; a dataset shifts all of its
    runs alike."""
    rng = np.random.default_rng([seed, *backend.encode(), *pattern.encode()])
    shift = np.random.default_rng(seed).normal(0, 2 * noise, datasets)  # the same at every backend
    return [
        DoseRun(
            backend=backend,
            label=f"{d:03d}" + f"-r{r}" * (r > 1) + f"~{pattern}~{level:g}" * bool(pattern),
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
