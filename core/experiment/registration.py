"""What a comparison of backends was registered to be about, before its first run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from core.experiment.config import Config
from core.experiment.tables import Metric


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """`contrasts`: "all2all against baseline"; `smallest_effect_pct`: a smaller difference does not
    matter."""

    metric: Metric
    contrasts: list[str]
    smallest_effect_pct: float


def of(config: Config, backends: Sequence[str]) -> Registration:
    """What `config` asks for, of the backends that are run."""
    pairs = itertools.combinations(backends, 2)
    return Registration(
        metric=config.experiment.metric,
        contrasts=[f"{other} against {reference}" for reference, other in pairs],
        smallest_effect_pct=config.experiment.smallest_effect_pct,
    )


def changes(first: Registration, later: Registration) -> list[str]:
    """`metric: mean_tpot_ms → mean_ttft_ms`, a phrase for each field that differs."""
    return [
        f"{name}: {_shown(getattr(first, name))} → {_shown(getattr(later, name))}"
        for name in first.__struct_fields__
        if getattr(first, name) != getattr(later, name)
    ]


def _shown(value: str | float | list[str]) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return value if isinstance(value, str) else f"{value:g}"
