"""Energy and clocks in a report: by routing, with prefill and decode apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from core.analysis.results import Results
from core.backends.energy import PhaseEnergy
from core.experiment import dose
from core.experiment.dose import Dose
from core.report.document import heading, items, table, text
from core.rundir.result import Result
from core.stats.descriptive import median
from core.terminal import shown

TITLE = "Energy and clocks"
METHOD = (
    "Medians over runs, of the GPUs that each server uses, by NVML's energy counters. J per output "
    "token is over the whole run; J per token of a phase counts its steps and all tokens in them. "
    "Both are read ten times a second, so phases that alternate faster share them. Where the clock "
    "differs between rows, a part of the difference in time is the clock's."
)
HEAD = [
    "backend",
    "routing",
    "runs",
    "J per output token",
    "prefill J/token",
    "decode J/token",
    "prefill SM MHz",
    "decode SM MHz",
    "power limit W",
]
NATURAL = "natural"


def parts(groups: Sequence[Results]) -> list[str]:
    """The section: a row for each backend and routing, or why there is none."""
    known = [_row(group.name, *one) for group in groups for one in _by_routing(group).items()]
    if known:
        return [heading(TITLE), table(HEAD, known), text(METHOD)]
    reasons = {r.energy_reason for group in groups for r in _all(group).values() if r.energy_reason}
    return [heading(TITLE), items(sorted(f"unknown: {why}" for why in reasons))] if reasons else []


def _all(group: Results) -> dict[str, Result]:
    return {**group.by_label, **group.imposed}


def _by_routing(group: Results) -> dict[str, list[Result]]:
    """The runs of which anything is known, by `natural`, `hot-rank 0.5` or `replayed`."""
    found: dict[str, list[Result]] = defaultdict(list)
    for label, one in _all(group).items():
        if one.energy_j is not None or one.sm_clock_mhz is not None:
            found[_routing(label)].append(one)
    return found


def _routing(label: str) -> str:
    imposed = dose.of_label(label)
    if imposed is None:
        return NATURAL
    if isinstance(imposed, Dose):
        return f"{imposed.pattern} {imposed.level:g}"
    return f"replay {imposed.source}"


def _row(backend: str, routing: str, runs: Sequence[Result]) -> list[str]:
    return [
        backend,
        routing,
        str(len(runs)),
        shown(median(r.j_per_output_token for r in runs), ".3g"),
        shown(median(_of(runs, "prefill", lambda p: p.j_per_token)), ".3g"),
        shown(median(_of(runs, "decode", lambda p: p.j_per_token)), ".3g"),
        shown(median(_of(runs, "prefill", lambda p: p.sm_clock_mhz)), ".0f"),
        shown(median(_of(runs, "decode", lambda p: p.sm_clock_mhz)), ".0f"),
        shown(median(r.power_limit_w for r in runs), ".0f"),
    ]


def _of(
    runs: Iterable[Result], phase: str, figure: Callable[[PhaseEnergy], float | None]
) -> list[float | None]:
    return [figure(r.energy_phases[phase]) for r in runs if phase in r.energy_phases]
