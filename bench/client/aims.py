"""The claims about gatescope's load client, each with its limit and whether one run of run.py met
it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Results = dict[str, dict[str, list[Any]]]  # scenario → client → a value a round

OURS, RUST, BARE, PYTHON = "gatescope", "vllm-rs", "aiohttp (raw)", "the best Python peer"
SGLANG = "sglang-rs"
OWN = "ITL error p99 of events read alone"
EACH, MANY = "an event a packet", "8 events a packet"


@dataclass(frozen=True)
class Aim:
    """`peer`: whose value gatescope's was divided by; "" if the value is absolute."""

    what: str
    value: float
    limit: float
    peer: str = ""
    at_least: bool = False
    unit: str = ""

    @property
    def is_met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def row(self) -> str:
        unit = f"× {self.peer}" if self.peer else self.unit
        value = f"{self.value:.3g} {unit}".strip()
        limit = f"{'≥' if self.at_least else '≤'} {self.limit:g}"
        return f"| {self.what} | {value} | {limit} | {'yes' if self.is_met else '**no**'} |"


def aims(results: Results, memory_growth: float) -> list[Aim]:
    """Every claim for which a peer took part."""
    return [
        *_capacity(results),
        *_accuracy(results, "32 streams"),
        *_accuracy(results, "256 streams"),
        *_ratios(
            "TTFT error p99, 256 streams", _errors(results, "256 streams", "ttft", 1), _both(0.5)
        ),
        *_absolute(results, memory_growth),
    ]


def _capacity(results: Results) -> list[Aim]:
    each, many = (
        {n: median([c["cpu_s"] for c in runs]) for n, runs in results[title].items()}
        for title in (EACH, MANY)
    )
    return [
        *_ratios(f"CPU a token, {EACH}", each, [(PYTHON, 0.65), (BARE, 0.75), *_both(1.0)]),
        *_ratios(f"CPU a token, {MANY}", many, _both(2.5)),
    ]


def _accuracy(results: Results, title: str) -> list[Aim]:
    gaps, own, first = (
        _errors(results, title, *key) for key in (("itl", 1), ("itl_own", 1), ("ttft", 0))
    )
    return [
        *_ratios(f"ITL error p99, {title}", gaps, _both(0.5)),
        Aim(f"ITL error p99, {title}", gaps[OURS], 0.1, unit="ms"),
        Aim(f"{OWN}, {title}", own[OURS], 0.1, unit="ms"),
        *_ratios(f"TTFT error median, {title}", first, [*_both(1.0), (PYTHON, 0.1)]),
    ]


def _absolute(results: Results, memory_growth: float) -> list[Aim]:
    stalled = _errors(results, "32 streams, stalled", "itl_own", 1)[OURS]
    failed = max(r["failed"] for r in results["1000 streams"][OURS])
    starts = _ours(results, "32 streams", lambda r: r["start_to_first_request_s"])
    kept_busy = _ours(results, "256 streams", lambda r: r["delivery"]["client"])
    return [
        Aim(f"{OWN}, worker stalled 20 ms in 100", stalled, 0.2, unit="ms"),
        Aim("load kept up by the client at 256 streams", kept_busy, 0.99, at_least=True),
        Aim("requests failed or incomplete, 1000 streams at once", failed, 0),
        Aim("memory of the worker, second half of 1e6 tokens over the first", memory_growth, 1.05),
        Aim("start of the command to first request", starts, 0.5, unit="s"),
    ]


def _both(limit: float) -> list[tuple[str, float]]:
    """The same limit against each of the two clients in Rust."""
    return [(RUST, limit), (SGLANG, limit)]


def _ratios(what: str, values: dict[str, float], limits: Sequence[tuple[str, float]]) -> list[Aim]:
    """An aim for each peer that took part. PYTHON stands for the best tool in Python; bare aiohttp
    is not a tool."""
    tools = {
        n: v for n, v in values.items() if n not in (OURS, RUST, SGLANG, BARE) and not math.isnan(v)
    }
    names = {PYTHON: min(tools, key=lambda n: tools[n])} if tools else {}
    named = [(names.get(peer, peer), limit) for peer, limit in limits]
    return [
        Aim(what, values[OURS] / values[peer], limit, peer)
        for peer, limit in named
        if peer in values
    ]


def _errors(results: Results, title: str, key: str, place: int) -> dict[str, float]:
    return {
        n: median([r["errors"][key][place] for r in runs]) for n, runs in results[title].items()
    }


def _ours(results: Results, title: str, value: Callable[[dict[str, Any]], float]) -> float:
    return median([value(r) for r in results[title][OURS]])


def median(values: Sequence[float]) -> float:
    """NaN if any value is, since NaN has no place in an order."""
    return math.nan if any(math.isnan(value) for value in values) else statistics.median(values)
