"""Results that other load generators wrote, under our names where they mean the same:
`vllm bench serve` and `vllm bench sweep`, guidellm, aiperf; and our own `bench`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import files
from core.analysis.comparand import Comparand
from core.errors import FileError
from core.rundir.result import Result

FLAT = (
    "mean_ttft_ms",
    "mean_tpot_ms",
    "mean_itl_ms",
    "mean_e2e_ms",
    "output_throughput",
    "request_throughput",
)
VLLM_NOTES = (
    "TTFT ends at the first event, also one without text, and begins before the connection is made",
    "with a rate and a limit of concurrency, the wait for a slot is in no latency",
    "ITL is every gap between events, not divided by the tokens of an event",
)
LARGEST = 1e300
GUIDELLM_NOTES = (
    "TPOT here is its inter_token_latency, (last - first token)/(n - 1); its own"
    " time_per_output_token contains TTFT and is left out",
    "ITL, every gap, is not in the file",
    "TTFT leaves out the connection and the wait for one; E2E ends with the stream",
    "rates leave out warm-up and cool-down",
)
AIPERF_NOTES = (
    "TPOT here is its inter_token_latency, one value a request; ITL, every gap, is not in the file",
    "TTFT begins just before the request and includes the connection; E2E ends with the stream",
)


@dataclass(frozen=True, slots=True)
class PeerRow:
    """One result. `notes`: where a figure of that name is not quite ours."""

    tool: str
    name: str
    figures: dict[str, float]
    notes: tuple[str, ...]


def read(file: Path) -> list[PeerRow]:
    """Every result in a file. FileError if it is none that we know."""
    found = list(_rows(file.name, files.read_by(file, files.with_constants)))
    if not any(row.figures for row in found):
        raise FileError(
            f"{file}: expected a result of vllm bench serve, vllm bench sweep, guidellm or aiperf,"
            " as JSON"
        )
    return found


def ours(cells: Sequence[Comparand]) -> list[PeerRow]:
    """Our own figures beside theirs: means over the runs of each cell."""
    return [
        PeerRow("gatescope", one.name, _known(_means(list(one.group.by_label.values()))), ())
        for one in cells
    ]


def _means(runs: Sequence[Result]) -> dict[str, float | None]:
    known = {key: [v for run in runs if (v := run.number(key)) is not None] for key in FLAT}
    return {key: sum(values) / len(values) if values else None for key, values in known.items()}


def _rows(name: str, whole: Any) -> Iterator[PeerRow]:
    if isinstance(whole, list):
        for number, one in enumerate(whole, 1):
            yield from _rows(f"{name}, {number}", one)
    elif not isinstance(whole, dict):
        return
    elif isinstance(whole.get("benchmarks"), list):
        for number, one in enumerate(whole["benchmarks"], 1):
            yield _guidellm(f"{name}, {number}", one)
    elif isinstance(whole.get("time_to_first_token"), dict):
        yield _aiperf(name, whole)
    else:
        yield _flat(name, whole)


def _flat(name: str, whole: Mapping[str, Any]) -> PeerRow:
    ours = "measured_imbalance" in whole or "client" in whole
    figures = {key: whole.get(key) for key in FLAT}
    figures["mean_e2e_ms"] = whole.get("mean_e2e_ms", whole.get("mean_e2el_ms"))
    tool = "gatescope" if ours else "vllm bench"
    return PeerRow(tool, name, _known(figures), () if ours else VLLM_NOTES)


def _guidellm(name: str, whole: Any) -> PeerRow:
    seconds = _number(_at(whole, "metrics", "request_latency", "successful", "mean"))
    keys = {
        "mean_ttft_ms": "time_to_first_token_ms",
        "mean_tpot_ms": "inter_token_latency_ms",
        "output_throughput": "output_tokens_per_second",
        "request_throughput": "requests_per_second",
    }
    figures = {ours: _at(whole, "metrics", key, "successful", "mean") for ours, key in keys.items()}
    figures["mean_e2e_ms"] = None if seconds is None else 1e3 * seconds
    return PeerRow("guidellm", name, _known(figures), GUIDELLM_NOTES)


def _aiperf(name: str, whole: Mapping[str, Any]) -> PeerRow:
    keys = {
        "mean_ttft_ms": "time_to_first_token",
        "mean_tpot_ms": "inter_token_latency",
        "mean_e2e_ms": "request_latency",
        "output_throughput": "output_token_throughput",
        "request_throughput": "request_throughput",
    }
    figures = {ours: _at(whole, key, "avg") for ours, key in keys.items()}
    return PeerRow("aiperf", name, _known(figures), AIPERF_NOTES)


def _at(whole: Any, *path: str) -> Any:
    for key in path:
        whole = whole.get(key) if isinstance(whole, dict) else None
    return whole


def _known(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures that are numbers, in our order."""
    known = {key: _number(figures.get(key)) for key in FLAT}
    return {key: value for key, value in known.items() if value is not None}


def _number(value: Any) -> float | None:
    """None for what is no number, or so large that it is none of a measurement."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < LARGEST else None
