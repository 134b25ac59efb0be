"""Energy and clocks of the GPUs that one server uses, by run and phase, from NVML's counters.

Readings are ten a second. Between two, energy and clock are taken as straight lines, so what a
phase used is by the time of its steps in each tenth of a second: where prefill and decode alternate
faster than that, they share its power.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import Struct, structs

from core.backends import nvml
from core.stats.arrays import Floats, Ints

READ_S = 0.1
NO_GPU = "NVML shows no GPU that this server uses"
ELSEWHERE = "{} of the server's {} GPUs are on this node; the others' energy is not known here"
NO_COUNTER = "NVML gives no energy counter of a GPU (before Volta, or a MIG slice)"


@dataclass(frozen=True, slots=True)
class Reading:
    """The server's GPUs at one moment, by the host's perf_counter."""

    at_ns: int
    energy_j: float | None  # since the driver was loaded, all GPUs
    sm_clock_mhz: float | None  # mean over GPUs


@dataclass(frozen=True, slots=True)
class Spans:
    """Steps of one phase: starts and ends in ns by the same clock, and their tokens in all."""

    starts: Ints
    ends: Ints
    tokens: int


class PhaseEnergy(Struct, frozen=True, kw_only=True):
    """The steps with prompt tokens (prefill), or those without (decode)."""

    seconds: float
    tokens: int
    energy_j: float | None = None
    j_per_token: float | None = None
    sm_clock_mhz: float | None = None  # mean over the steps' time


class Energy(Struct, frozen=True, kw_only=True):
    """What a run used, from its first request to its last token. What is unknown is None, and
    `energy_reason` says why."""

    energy_j: float | None = None
    energy_reason: str | None = None
    j_per_output_token: float | None = None
    sm_clock_mhz: float | None = None  # mean over time and GPUs
    power_limit_w: float | None = None  # of one GPU; None too where they differ
    energy_phases: dict[str, PhaseEnergy] = {}


class Gauge:
    """Reads the first `count` of the GPUs that a process with `env` sees; a server of that many
    ranks uses these."""

    def __init__(self, env: Mapping[str, str], count: int) -> None:
        self._devices = nvml.seen(env)[:count] if count else []
        self._count = count
        limits = {nvml.power_limit_w(device) for device in self._devices}
        self._limit_w = limits.pop() if len(limits) == 1 else None
        self.readings: list[Reading] = []

    @property
    def serials(self) -> list[str]:
        """What tells each GPU from all others, where NVML knows it."""
        return [found for device in self._devices if (found := nvml.serial(device))]

    def read(self) -> None:
        """Take a reading; nothing where there is no GPU."""
        if self._devices:
            joules = [nvml.energy_j(device) for device in self._devices]
            clocks = [nvml.sm_clock_mhz(device) for device in self._devices]
            taken = Reading(time.perf_counter_ns(), _total(joules), _mean(clocks))
            self.readings.append(taken)

    def used(
        self, began_ns: int, ended_ns: int, output_tokens: int, phases: Mapping[str, Spans]
    ) -> Energy:
        """What was used from `began_ns` to `ended_ns`, and in the steps of each phase."""
        if not self._devices:
            return Energy(energy_reason=NO_GPU)
        if len(self._devices) < self._count:
            return Energy(energy_reason=ELSEWHERE.format(len(self._devices), self._count))
        energy = used(self.readings, began_ns, ended_ns, output_tokens, phases)
        return structs.replace(energy, power_limit_w=self._limit_w)


def used(
    readings: Sequence[Reading],
    began_ns: int,
    ended_ns: int,
    output_tokens: int,
    phases: Mapping[str, Spans],
) -> Energy:
    """As `Gauge.used`, from readings around that time."""
    joules = _curve([(r.at_ns, r.energy_j) for r in readings])
    clock = _integral(_curve([(r.at_ns, r.sm_clock_mhz) for r in readings]))
    whole = Spans(np.array([began_ns]), np.array([ended_ns]), output_tokens)
    run = _of(whole, joules, clock)
    return Energy(
        energy_j=run.energy_j,
        energy_reason=None if joules else NO_COUNTER,
        j_per_output_token=run.j_per_token,
        sm_clock_mhz=run.sm_clock_mhz,
        energy_phases={name: _of(s, joules, clock) for name, s in phases.items() if len(s.starts)},
    )


Curve = tuple[Floats, Floats]  # seconds, and a value that only grows


def _curve(points: Sequence[tuple[int, float | None]]) -> Curve | None:
    """None unless two readings have the figure, and all do."""
    known = [(at / 1e9, value) for at, value in points if value is not None]
    if len(known) < max(2, len(points)):
        return None
    at, values = np.array(known, np.float64).T
    return at, values


def _integral(curve: Curve | None) -> Curve | None:
    """The area below a curve, up to each of its points."""
    if curve is None:
        return None
    at, values = curve
    return at, np.concatenate([[0.0], np.cumsum(np.diff(at) * (values[1:] + values[:-1]) / 2)])


def _of(spans: Spans, joules: Curve | None, clock: Curve | None) -> PhaseEnergy:
    seconds = float((spans.ends - spans.starts).sum()) / 1e9
    energy, area = _rise(joules, spans), _rise(clock, spans)
    return PhaseEnergy(
        seconds=seconds,
        tokens=spans.tokens,
        energy_j=energy,
        j_per_token=energy / spans.tokens if energy is not None and spans.tokens else None,
        sm_clock_mhz=area / seconds if area is not None and seconds else None,
    )


def _rise(curve: Curve | None, spans: Spans) -> float | None:
    """By how much a curve grows over all spans together."""
    if curve is None:
        return None
    ends, starts = (np.interp(at / 1e9, *curve) for at in (spans.ends, spans.starts))
    return float((ends - starts).sum())


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    total = _total(values)
    return None if total is None else total / len(values)
