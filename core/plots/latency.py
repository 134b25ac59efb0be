"""Latency of single requests, from a result's own lists, and its distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from core.analysis.results import Results
from core.errors import NoDataError
from core.plots import palette
from core.plots.figure import Curve, Series
from core.plots.labels import LATENCIES
from core.rundir.result import Result
from core.stats import bootstrap
from core.stats.arrays import Floats
from core.stats.bootstrap import Interval

LOG_FROM = 8.0  # of largest/smallest


def per_request(result: Result, name: str) -> Floats:
    """TTFT, TPOT or E2E of each completed request, in ms; empty where the result's lists do not
    give its own mean.

    (Older results begin a request's list of gaps with its TTFT: those give no TPOT. Ours have a
    gap for each token after the first event.)
    """
    lists = zip(result.ttfts, result.itls, result.output_lens, strict=False)
    done = [(ttft, gaps, n) for ttft, gaps, n in lists if ttft is not None and n]
    seconds = {
        "ttft": [ttft for ttft, _, _ in done],
        "tpot": [
            sum(gaps) / (len(gaps) if result.visible_tokens else n - 1)
            for _, gaps, n in done
            if n > 1 and (gaps or not result.visible_tokens)
        ],
        "e2e": [ttft + sum(gaps) for ttft, gaps, _ in done],
    }[name]
    values, mean = np.array(seconds, dtype=float) * 1e3, result.number(f"mean_{name}_ms")
    agrees = len(values) and mean is not None and math.isclose(values.mean(), mean, rel_tol=1e-3)
    return values if agrees else np.zeros(0)


def mean_interval(values: Floats) -> Interval | None:
    """The 95 % interval of the mean over requests, by Student's t; None below two."""
    n = len(values)
    if n < 2:
        return None
    reach = bootstrap.t_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return float(values.mean()) - reach, float(values.mean()) + reach


def ecdf(groups: Sequence[Results], name: str, engine: str = "", label: str = "") -> Series:
    """The share of requests that took at most x ms, by backend; for the run with this `label`, or
    for all runs.

    Bands cover the whole curve with 95 % confidence if requests are independent (Dvoretzky, Kiefer,
    Wolfowitz; Massart's constant). NoDataError if no result lists its requests.
    """
    places = palette.places([group.name for group in groups])
    found = [(places[g.name], g.name, _of_group(g, name, label)) for g in groups]
    curves = tuple(
        _curve(values, backend, place) for place, backend, values in found if len(values)
    )
    if not curves:
        raise NoDataError(f"no result lists the {LATENCIES[name]} of its requests")
    xs = np.concatenate([curve.x for curve in curves])
    return Series(
        f"{LATENCIES[name]} of single requests" + (f", dataset {label}" if label else ""),
        f"{LATENCIES[name]}, ms",
        "share of requests at or below",
        engine=engine,
        note="n = "
        + ", ".join(f"{len(values):,}" for _, _, values in found if len(values))
        + " requests; bands: 95 % of the whole curve",
        curves=curves,
        log_x=bool(xs.min() > 0 and xs.max() > LOG_FROM * xs.min()),
    )


def _of_group(group: Results, name: str, label: str) -> Floats:
    results = [r for key, r in group.by_label.items() if not label or key == label]
    return np.concatenate([np.zeros(0), *(per_request(r, name) for r in results)])


def _curve(values: Floats, backend: str, place: int) -> Curve:
    x = np.sort(values)
    y = np.arange(1, len(x) + 1) / len(x)
    reach = math.sqrt(math.log(2 / (1 - bootstrap.LEVEL)) / (2 * len(x)))
    p50, p90 = np.percentile(x, [50, 90])
    named = f"{backend}: p50 {p50:.4g}, p90 {p90:.4g} ms"
    return Curve(named, x, y, place, "steps", np.clip(y - reach, 0, 1), np.clip(y + reach, 0, 1))
