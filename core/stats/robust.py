"""Least squares that a few wild points do not pull: Huber's M-estimate, and its resamples."""

from __future__ import annotations

import numpy as np

from core.stats.arrays import Floats, Ints

HUBER = 1.345


def fit(design: Floats, y: Floats) -> Floats:
    """Huber's M-estimate of the coefficients [columns], after ten rounds."""
    scale = _scale(design)
    found, _ = _scaled(design / scale, y)
    return np.asarray(found / scale)


def resampled(design: Floats, y: Floats, group: Ints, draws: Floats) -> Floats:
    """[resamples, columns]: the coefficients in each resample of the groups, by one Newton step of
    Huber's equations from the estimate, so that each weighs the points anew.

    `group` [points]: where each belongs; `draws` [resamples, groups]: how often each is drawn.
    """
    scale = _scale(design)
    x = design / scale
    found, limit = _scaled(x, y)
    left, width = y - x @ found, x.shape[1]
    kept = (abs(left) <= limit).astype(np.float64)
    slopes = np.column_stack([kept * x[:, i] * x[:, j] for i in range(width) for j in range(width)])
    per_point = np.hstack([slopes, np.clip(left, -limit, limit)[:, None] * x])
    sums = np.zeros((draws.shape[1], per_point.shape[1]))
    np.add.at(sums, group, per_point)
    drawn = draws @ sums
    bent, pull = drawn[:, : width**2].reshape(-1, width, width), drawn[:, width**2 :]
    moved = found + (np.linalg.pinv(bent, hermitian=True) @ pull[..., None])[..., 0]
    return np.asarray(moved / scale)


def _scale(design: Floats) -> Floats:
    return np.asarray(np.maximum(abs(design).max(axis=0, initial=0), 1e-12))


def _scaled(x: Floats, y: Floats) -> tuple[Floats, float]:
    """The coefficients, and the residual from which on a point counts as wild."""
    weight, limit, found = np.ones(len(y)), np.inf, np.zeros(x.shape[1])
    for _ in range(10):
        root = np.sqrt(weight)
        found = np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0]
        size = abs(y - x @ found)
        limit = HUBER * max(float(np.median(size)) / 0.6745, 1e-9)
        weight = np.minimum(1.0, limit / np.maximum(size, 1e-12))
    return found, limit
