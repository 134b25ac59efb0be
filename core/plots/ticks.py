"""Ticks at round numbers, with labels that differ."""

from __future__ import annotations

import math

Ticks = tuple[list[float], list[str]]


def even(low: float, high: float, most: int) -> Ticks:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], at most `most`; for a single
    value, that value."""
    if not high > low:
        return [low], [f"{low:.4g}"]
    step = next(s for s in _steps((high - low) / most) if _count(low, high, s) <= most)
    first = math.ceil(low / step - 1e-9)
    places = [(first + i) * step for i in range(_count(low, high, step))]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return places, [f"{p:,.{digits}f}" for p in places]


def decades(low: float, high: float) -> Ticks:
    """1, 2 and 5 times powers of ten within [low, high] (both above 0); even ticks if there are
    fewer than two."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    places = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    places = [p for p in places if low * (1 - 1e-9) <= p <= high * (1 + 1e-9)]
    return (places, [f"{p:,.10g}" for p in places]) if len(places) > 1 else even(low, high, 4)


def _steps(least: float) -> list[float]:
    """1, 2, 5, 10, 20 … times the power of ten below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return [m * power for m in (1, 2, 5, 10, 20, 50, 100)]


def _count(low: float, high: float, step: float) -> int:
    return math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1
