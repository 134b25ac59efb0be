"""Gate logs → load imbalance: CVs, noise floor, excess CV, max/min, max/mean per rank.

Definitions, with x[s, l, e] the tokens that expert e of layer l got in step s, and n the tokens of a step:

- CV(x) = population std(x) / (mean(x) + 1e-10) over the experts.
- per-step CV: mean of CV over all (s, l). aggregated CV: CV of Σ x over layers and steps of ≤ 1000 tokens.
  Both are upstream's. layer CV: Σ over steps, CV, mean over layers.
- noise floor: what a perfectly fair router shows by chance, floor² = (E/k²) Σ_e p(1-p)/(n-1), p = x/n. A token picks
  k distinct experts, so each x_e is a sum of n draws with variance p(1-p); n-1 makes the estimate unbiased.
- excess CV = √max(0, mean(CV²) - mean(floor²)): means before the root, so that a fair router's tends to 0. It is null,
  with a reason, where it does not rise above its own standard error (jackknife over steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from core import gatelog
from core.gatelog import GateLog, GateLogError

EPSILON = 1e-10
MAX_AGGREGATED_TOKENS = 1000
WARMUP = "warmup"  # the segment of warm-up requests: never measured

Floats = npt.NDArray[np.float64]


class Excess(msgspec.Struct, frozen=True):
    """An excess CV, or null and the reason why n does not support one."""

    value: float | None
    reason: str | None = None


class Imbalance(msgspec.Struct, frozen=True, kw_only=True):
    """What one set of steps shows. Lists are by expert (loads summed over layers and steps)."""

    per_step_cv: float
    aggregated_cv: float | None
    layer_cv: float
    noise_floor: float | None
    excess_cv: float | None
    excess_cv_reason: str | None
    aggregated_noise_floor: float | None
    aggregated_excess_cv: float | None
    aggregated_excess_cv_reason: str | None
    max_min_ratio: float | None
    rank_imbalance: float | None
    tokens: int
    steps: int
    layers: int
    expert_loads: list[float]
    left_out: dict[str, int] = {}  # steps not counted, by reason
    files: int = 1


@dataclass(frozen=True, slots=True)
class LayerSteps:
    """One layer's steps: `loads` [steps, experts] and `tokens` [steps]. Layers may hold different steps."""

    loads: Floats
    tokens: npt.NDArray[np.int64]


def cv(loads: npt.NDArray[Any]) -> Floats:
    """Coefficient of variation over the last axis, as upstream computes it."""
    return np.asarray(loads.std(axis=-1) / (loads.mean(axis=-1) + EPSILON))


def floor_squared(loads: npt.NDArray[Any], tokens: npt.NDArray[Any], top_k: float) -> Floats:
    """Squared noise floor over the last axis; nan where tokens < 2."""
    n = np.asarray(tokens, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = loads / n[..., None]
        floor = loads.shape[-1] / top_k**2 * (p * (1 - p)).sum(axis=-1) / (n - 1)
    return np.where(n >= 2, floor, np.nan)


def measure_log(log: GateLog, left_out: dict[str, int] | None = None, files: int = 1) -> Imbalance:
    """Imbalance of every step of a binary log. GateLogError where it holds none."""
    layers = [LayerSteps(log.loads[:, layer].astype(np.float64), log.tokens) for layer in range(log.loads.shape[1])]
    ranks = _rank_imbalance(log) if log.placement else None
    return measure(layers, rank_imbalance=ranks, left_out=left_out or {}, files=files)


def measure(
    layers: list[LayerSteps],
    *,
    rank_imbalance: float | None = None,
    left_out: dict[str, int] | None = None,
    files: int = 1,
) -> Imbalance:
    """All measures over the given layers. GateLogError without a step that carries tokens."""
    layers = [_with_tokens(layer) for layer in layers]
    if not layers or not any(len(layer.tokens) for layer in layers):
        raise GateLogError("no step with tokens")
    loads = np.concatenate([layer.loads for layer in layers])
    tokens = np.concatenate([layer.tokens for layer in layers])
    top_k = float(np.median(loads.sum(axis=1) / tokens))
    step_cv = cv(loads)
    floors = floor_squared(loads, tokens, top_k)
    excess = _per_step_excess(layers, top_k)
    small = [_mask(layer, layer.tokens <= MAX_AGGREGATED_TOKENS) for layer in layers]
    aggregated, floor, aggregated_excess, ratio = _aggregated(small, top_k)
    summed = np.array([layer.loads.sum(axis=0) for layer in layers if len(layer.tokens)])
    return Imbalance(
        per_step_cv=float(step_cv.mean()),
        aggregated_cv=aggregated,
        layer_cv=float(cv(summed).mean()),
        noise_floor=None if np.isnan(floors).all() else float(np.sqrt(np.nanmean(floors))),
        excess_cv=excess.value,
        excess_cv_reason=excess.reason,
        aggregated_noise_floor=floor,
        aggregated_excess_cv=aggregated_excess.value,
        aggregated_excess_cv_reason=aggregated_excess.reason,
        max_min_ratio=ratio,
        rank_imbalance=rank_imbalance,
        tokens=int(max(layer.tokens.sum() for layer in layers)),
        steps=max(len(layer.tokens) for layer in layers),
        layers=len(layers),
        expert_loads=summed.sum(axis=0).tolist(),
        left_out={reason: n for reason, n in (left_out or {}).items() if n},
        files=files,
    )


def _per_step_excess(layers: list[LayerSteps], top_k: float) -> Excess:
    """Mean over layers of CV² - floor², a value a step; its standard error is over steps."""
    values = [cv(x.loads) ** 2 - floor_squared(x.loads, x.tokens, top_k) for x in layers]
    if len({len(v) for v in values}) > 1:  # layers that logged different steps: take what each step has
        longest = max(len(v) for v in values)
        values = [np.pad(v, (0, longest - len(v)), constant_values=np.nan) for v in values]
    table = np.array(values)
    usable = ~np.isnan(table).all(axis=0)
    if not usable.any():
        return Excess(None, "every step has a single token: CV says nothing about the router")
    by_step = np.nanmean(table[:, usable], axis=0)
    if len(by_step) < 2:
        return Excess(None, "one step only: no standard error")
    return _judged(float(by_step.mean()), float(by_step.std(ddof=1) / np.sqrt(len(by_step))))


def _aggregated(layers: list[LayerSteps], top_k: float) -> tuple[float | None, float | None, Excess, float | None]:
    """Aggregated CV, its noise floor, its excess, and max/min of the expert loads."""
    layers = [layer for layer in layers if len(layer.tokens)]
    if not layers:
        reason = f"no step of {MAX_AGGREGATED_TOKENS} tokens or fewer"
        return None, None, Excess(None, reason), None
    total = np.sum([layer.loads.sum(axis=0) for layer in layers], axis=0)
    n = float(sum(layer.tokens.sum() for layer in layers))
    squared_floor = float(floor_squared(total, np.array(n), top_k))
    ratio = float(total.max() / total.min()) if total.min() > 0 else None
    value = float(cv(total))
    floor = None if np.isnan(squared_floor) else float(np.sqrt(squared_floor))
    return value, floor, _aggregated_excess(layers, total, n, top_k), ratio


def _aggregated_excess(layers: list[LayerSteps], total: Floats, n: float, top_k: float) -> Excess:
    """Excess of the summed counts; standard error by leaving one step out at a time."""
    steps = min(len(layer.tokens) for layer in layers)
    if steps < 2 or any(len(layer.tokens) != steps for layer in layers):
        return Excess(None, "fewer than two steps common to all layers: no standard error")
    without = total - np.sum([layer.loads for layer in layers], axis=0)
    left = n - np.sum([layer.tokens for layer in layers], axis=0)
    values = cv(without) ** 2 - floor_squared(without, left, top_k)
    error = np.sqrt((steps - 1) / steps * ((values - values.mean()) ** 2).sum())
    return _judged(float(cv(total) ** 2 - floor_squared(total, np.array(n), top_k)), float(error))


def _judged(squared: float, error: float) -> Excess:
    if np.isnan(squared) or np.isnan(error):
        return Excess(None, "too few tokens for a noise floor")
    if squared <= error:
        return Excess(None, f"excess² {squared:.4g} is not above its standard error {error:.4g}")
    return Excess(float(np.sqrt(squared)))


def _rank_imbalance(log: GateLog) -> float | None:
    """Mean over steps and layers of max/mean load per expert-parallel rank."""
    ranks = np.array(log.placement)
    loads = np.stack([log.loads[:, :, ranks == r].sum(axis=-1) for r in range(ranks.max() + 1)], axis=-1)
    mean = loads.mean(axis=-1)
    return float((loads.max(axis=-1)[mean > 0] / mean[mean > 0]).mean()) if (mean > 0).any() else None


def _with_tokens(layer: LayerSteps) -> LayerSteps:
    return _mask(layer, layer.tokens > 0)


def _mask(layer: LayerSteps, keep: npt.NDArray[np.bool_]) -> LayerSteps:
    return LayerSteps(layer.loads[keep], layer.tokens[keep])


# --- folders ------------------------------------------------------------------------------------------------------


def measure_folder(folder: Path) -> tuple[dict[str, Imbalance], list[str]]:
    """A folder of gate logs, or a folder of such folders → measures by name, and what could not be read.

    A binary log is split by its segments (`gates_logs_<label>`), as a run directory's is.
    """
    if not folder.is_dir():
        return {}, [f"{folder}: not a folder"]
    found: dict[str, Imbalance] = {}
    problems: list[str] = []
    for place in _log_folders(folder):
        for measured, problem in (_measure_json(place), _measure_binary(place)):
            found |= measured
            problems += problem
    if not found and not problems:
        problems.append(f"{folder}: no gate logs (*.gatelog, or gate_logs_<layer>.json) in it or in its folders")
    return found, problems


def _log_folders(folder: Path) -> list[Path]:
    def holds_logs(place: Path) -> bool:
        return any(p.suffix == ".gatelog" or p.name.startswith("gate_logs_") for p in place.iterdir() if p.is_file())

    if holds_logs(folder):
        return [folder]
    inner = sorted(p for p in folder.iterdir() if p.is_dir())
    return [p for p in inner if holds_logs(p)] or [p for p in inner if p.name.startswith("gates_logs")]


def _measure_json(folder: Path) -> tuple[dict[str, Imbalance], list[str]]:
    problems: list[str] = []
    layers: list[LayerSteps] = []
    empty = 0
    for path in gatelog.json_layers(folder):
        try:
            layer = gatelog.read_json_layer(path)
        except GateLogError as error:
            problems.append(str(error))
            continue
        empty += int((layer.tokens == 0).sum())
        if layers and layer.loads.shape[1] != layers[0].loads.shape[1]:
            problems.append(f"{path}: {layer.loads.shape[1]} experts, the layers before it have others")
            continue
        layers.append(LayerSteps(layer.loads, layer.tokens))
    if not layers:
        if not problems and not list(folder.glob("*.gatelog")):
            problems.append(f"{folder}: holds no gate log")
        return {}, problems
    try:
        return {folder.name: measure(layers, left_out={"no tokens": empty}, files=len(layers))}, problems
    except GateLogError as error:
        return {}, [*problems, f"{folder}: {error}"]


def _measure_binary(folder: Path) -> tuple[dict[str, Imbalance], list[str]]:
    found: dict[str, Imbalance] = {}
    problems: list[str] = []
    for path in sorted(folder.glob("*.gatelog")):
        try:
            log = gatelog.read(path)
        except GateLogError as error:
            problems.append(str(error))
            continue
        if log.lost:
            problems.append(f"{path}: cut off: {log.lost} are lost; what was whole is used")
        for label in sorted(log.segments):
            if label in ("", WARMUP):
                continue
            try:
                found[f"gates_logs_{label}"] = measure_segment(log, label)
            except GateLogError as error:
                problems.append(f"{path}, {label}: {error}")
        if not log.segments:
            problems.append(f"{path}: holds no step")
    return found, problems


def measure_segment(log: GateLog, label: str) -> Imbalance:
    """The steps of one run, and how many were left out because another run's tokens were in them."""
    return measure_segments([log], label)


def measure_segments(parts: Sequence[GateLog], label: str) -> Imbalance:
    """As `measure_segment`, of a log that was read in several parts. GateLogError where no step is the run's own."""
    own = [part.of(label) for part in parts]
    shared = sum(part.shared_steps(label) for part in parts)
    joined = GateLog(
        np.concatenate([p.loads for p in own]),
        {"tokens": np.concatenate([p.tokens for p in own])},
        {},
        own[0].top_k,
        own[0].placement,
    )
    return measure_log(joined, {"shared with another segment": shared})
