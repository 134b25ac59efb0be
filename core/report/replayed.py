"""Replayed routing in a report and at the end of a batch: what each recorded run costs here, beside
a fair router and the model's own routing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from core.analysis.results import Results
from core.experiment import dose, plan
from core.experiment.dose import Dose, Replay
from core.report import document
from core.report.document import heading, items, text
from core.rundir.result import Result
from core.terminal import shown

TITLE = "What recorded routing costs here (replayed routing)"
WHAT = (
    "In these runs the router was overruled: every step gave every layer the loads of a step that "
    "was recorded elsewhere, step after step of its log. So each expert got as many tokens, and as "
    "many experts were active. The text that such runs generate means nothing. They are in "
    "none of the other sections."
)
METHOD = (
    "Means over runs; in brackets the lowest and highest run, where there are several. "
    "The differences are of median decode steps, each dataset against itself: to forced routing at "
    "level 0 (a fair router; add --dose 0) and to the model's own routing. They have no interval: "
    "that would need several starts of the server. A step is exact where every expert of every "
    "layer got as many tokens as in the recorded step; other steps are made of recorded ones:"
)
HEAD = [
    "backend",
    "replayed",
    "runs",
    "exact steps",
    "decode CV",
    "rank max/mean",
    "decode step ms",
    "over level 0",
    "over natural",
    "TPOT ms",
]


def parts(groups: Sequence[Results]) -> list[str]:
    """The section; nothing where no routing was replayed."""
    cells = rows(groups)
    if not cells:
        return []
    made = document.table(HEAD, cells)
    return [heading(TITLE), text(WHAT), made, text(METHOD), items(steps_in_words(groups))]


def table(groups: Sequence[Results]) -> str:
    """`rows` in columns of text."""
    return document.in_columns([HEAD, *rows(groups)])


def rows(groups: Sequence[Results]) -> list[list[str]]:
    """A row for each backend and recorded run."""
    return [
        _row(group, source, own)
        for group in groups
        for source, own in sorted(_by_source(group).items())
    ]


def steps_in_words(groups: Sequence[Results]) -> list[str]:
    """How each run's steps were made of recorded ones."""
    return [
        f"{group.name}/{label}: {_layers(result)}{result.replayed_routing.in_words()}"
        for group in groups
        for label, result in group.replayed.items()
        if result.replayed_routing
    ]


def _layers(result: Result) -> str:
    """Which of the recorded layers were replayed, where those are not all."""
    made = result.replayed_routing
    if made is None or made.layers == made.recorded_layers:
        return ""
    return f"the first {made.layers} of {made.recorded_layers} recorded layers; "


def _by_source(group: Results) -> dict[str, dict[str, Result]]:
    found: dict[str, dict[str, Result]] = defaultdict(dict)
    for label, result in group.replayed.items():
        if isinstance(replay := dose.of_label(label), Replay):
            found[replay.source][label] = result
    return found


def _row(group: Results, source: str, own: Mapping[str, Result]) -> list[str]:
    fair = {label: one for label, one in group.forced.items() if _is_fair(label)}
    measured = [one.measured_imbalance for one in own.values() if one.measured_imbalance]
    decode = [m.decode for m in measured if m.decode]
    return [
        group.name,
        source,
        str(len(own)),
        _exact(list(own.values())),
        shown(_mean([phase.per_step_cv for phase in decode]), ".3f"),
        shown(_mean([phase.rank_imbalance for phase in decode]), ".2f"),
        _spread([one.decode_step_ms for one in own.values()]),
        _over(own, fair),
        _over(own, group.by_label),
        _spread([one.mean_tpot_ms for one in own.values()]),
    ]


def _is_fair(label: str) -> bool:
    forced = dose.of_label(label)
    return isinstance(forced, Dose) and forced.level == 0


def _exact(own: Sequence[Result]) -> str:
    """`118 of 127`: decode steps that had a recorded step's loads, count for count."""
    made = [one.replayed_routing.decode for one in own if one.replayed_routing]
    total = sum(s.exact + s.added + s.thinned + s.natural + s.unproven for s in made)
    return f"{sum(s.exact for s in made)} of {total}"


def _over(own: Mapping[str, Result], reference: Mapping[str, Result]) -> str:
    """The mean over datasets of how much longer the decode step is than the reference's."""
    ours, theirs = _by_dataset(own), _by_dataset(reference)
    both = [ours[name] / theirs[name] - 1 for name in ours.keys() & theirs.keys()]
    return f"{100 * fmean(both):+.1f} %" if both else "–"


def _by_dataset(runs: Mapping[str, Result]) -> dict[str, float]:
    """Dataset → mean decode step of its runs, in ms."""
    known: dict[str, list[float]] = defaultdict(list)
    for label, one in runs.items():
        if one.decode_step_ms:
            known[plan.dataset_of(label)].append(one.decode_step_ms)
    return {name: fmean(values) for name, values in known.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _spread(values: Sequence[float | None]) -> str:
    """`14.2 [14.1, 14.4]`."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    ends = f" [{min(known):.4g}, {max(known):.4g}]" if len(known) > 1 else ""
    return f"{fmean(known):.4g}{ends}"
