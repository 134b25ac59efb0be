"""What figures, metrics and axes are called, with units: for every place that shows one."""

from __future__ import annotations

from typing import Literal

Axis = Literal["excess", "per-step", "aggregated", "predicted", "predicted-work"]
AXES: dict[Axis, str] = {
    "excess": "excess CV² of expert load",
    "per-step": "per-step CV of expert load",
    "aggregated": "aggregated CV of expert load",
    "predicted": "predicted imbalance score",
    "predicted-work": "predicted active experts of the busiest rank",
}
FIGURES = {
    "scatter": "scatter",
    "heatmap": "heat map",
    "cv-over-time": "CV over time",
    "step-time": "step time",
    "ecdf": "ECDF",
    "rank-load": "rank load",
    "prediction": "prediction",
}
OF_CELLS = {"pareto": "Pareto", "load": "imbalance against load"}
LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
METRICS = {
    **{
        f"{statistic}_{key}_ms": f"{statistic} {name}, ms"
        for statistic in ("mean", "median", "p99")
        for key, name in LATENCIES.items()
    },
    "decode_step_ms": "median decode step, ms",
    "output_throughput": "output throughput, tok/s",
    "request_throughput": "request throughput, requests/s",
    "request_goodput": "goodput, requests/s",
    "j_per_output_token": "energy per output token, J",
}


def metric(key: str) -> str:
    """`mean TTFT, ms`; a metric without a name keeps its key."""
    return METRICS.get(key, key)


def short(key: str) -> str:
    """The same without its unit: `mean TTFT`."""
    return metric(key).split(", ")[0]


def unit(key: str) -> str:
    """`ms`, `tok/s`; "" where it is not known."""
    return metric(key).partition(", ")[2]


def short_axis(axis: Axis) -> str:
    """`excess CV`."""
    return AXES[axis].removesuffix(" of expert load")
