"""What a run directory's results say: association with imbalance for each backend, backends
compared, in words."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np

from core.analysis import dose_findings
from core.analysis.dose_findings import DoseFindings
from core.analysis.results import NAMES, Results
from core.backends import builtin
from core.experiment.registration import Registration
from core.experiment.tables import Metric
from core.rundir.result import Result
from core.stats import association, comparison
from core.stats.arrays import Floats
from core.stats.association import Association
from core.stats.comparison import Comparison
from core.stats.estimate import Estimate

HEADLINE = "mean_tpot_ms"
TOKENS = ("total_input_tokens", "total_output_tokens")
PER = 0.1  # of excess CV²: the unit of slopes
MIDDLE = (10, 90)  # percentiles of excess CV², between which a change is stated
POWERED = ((1.96 + 0.84) / 1.96) ** 2  # times the datasets: 80 % power, not half
NAMED = 3  # influential datasets that a sentence names
ORDER = (
    "Backends ran one after the other, "
    "so a drift of the machine over time would show as a difference between them."
)
BUILTIN = "All times are of the built-in engine on a CPU: they say nothing about GPUs."


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of one backend against signed excess CV², which has a value at the noise floor too:
    no dataset is dropped for being near it. `without`: the same without the `influential`
    datasets, untested. `span`: of excess CV², from its 10th to its 90th percentile; `typical`: the
    median of the metric; `margin_pct`: a smaller change does not matter.

    A point is a dataset at the mean of its repeats, of which `repeats` counts the fewest and the
    most.
    """

    backend: str
    metric: str
    association: Association
    without: Association
    influential: tuple[str, ...] = ()
    repeats: tuple[int, int] = (1, 1)
    span: float = 0.0
    typical: float = 0.0
    margin_pct: float = comparison.MARGIN_PCT

    @property
    def change(self) -> Estimate:
        """What the slope makes of the metric over `span`, in its unit."""
        return self.association.slope.scaled(self.span)

    @property
    def percent(self) -> Estimate:
        """The same in % of `typical`."""
        return self.change.scaled(100 / self.typical) if self.typical else self.change

    @property
    def verdict(self) -> str:
        """*larger* where the change is seen after Holm's correction and its 95 % interval is beyond
        the margin, *equivalent* where that is within it, *bends* where the metric goes with excess
        CV² but neither rises nor falls with it; else *inconclusive*."""
        found, ends = self.association, self.percent.interval
        if ends is None:
            return "–"
        if found.is_seen and not found.is_monotone:
            return "bends"
        if found.is_monotone and (ends[0] > self.margin_pct or ends[1] < -self.margin_pct):
            return "larger"
        is_within = -self.margin_pct < ends[0] and ends[1] < self.margin_pct
        return "equivalent" if is_within else "inconclusive"

    @property
    def needed(self) -> int | None:
        """Datasets that would settle it with 80 % power, if the change is as it was measured and
        its interval narrows with the root of n; None where it is settled, or nothing is known."""
        value, ends = self.percent.value, self.percent.interval
        if self.verdict != "inconclusive" or value is None or ends is None:
            return None
        gap = max(abs(abs(value) - self.margin_pct), 1e-3)
        half = (ends[1] - ends[0]) / 2
        return max(self.association.n, math.ceil(self.association.n * POWERED * (half / gap) ** 2))

    def in_words(self) -> str:
        """One sentence with intervals and n."""
        found, unit = self.association, NAMES[self.metric][1]
        if found.spearman.value is None:
            return self.brief
        p = _p_in_words(found.p, found.p_holm)
        slope = f"slope {_slope(found)} {unit} per {PER} of excess CV²"
        bent_p = _p_in_words(found.p_distance, found.p_distance_holm)
        bent = f"distance correlation {found.distance:.2f}, {bent_p}"
        facts = f"Spearman {found.spearman.shown('.2f')}, {p}; {bent}; {slope}{self._robust}"
        if not found.is_seen or not found.is_monotone:
            return f"{self.brief} ({facts}; {self._of})"
        explained = f"explains {found.explained.scaled(100).shown('.0f')} % of its variance"
        return f"{self.brief} ({facts}; {explained}; {self._of}){_held(found)}"

    @property
    def brief(self) -> str:
        """What is found, without the figures that show it; or why nothing can be said."""
        found, name = self.association, f"{self.backend} {NAMES[self.metric][0]}"
        if found.spearman.value is None:
            return f"{name} against excess CV²: {found.spearman.reason}"
        if not found.is_seen:
            return f"no association of {name} with excess CV² is detected"
        if not found.is_monotone:
            return f"{name} depends on excess CV², but does not rise or fall with it"
        return f"{name} {'rises' if found.spearman.value > 0 else 'falls'} with excess CV²"

    @property
    def _robust(self) -> str:
        """The slope without the most influential datasets, where there are any."""
        if not self.influential or self.without.slope.value is None:
            return ""
        more = " …" if len(self.influential) > NAMED else ""
        names = ", ".join(self.influential[:NAMED]) + more
        return f"; without the most influential ({names}) {_slope(self.without)}"

    @property
    def _of(self) -> str:
        return f"n = {self.association.n} datasets{comparison.repeated(self.repeats)}"


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """`left_out`: runs without an excess CV², which no association counts. Intervals are 95 %.

    All but `forced` is about runs whose routing was natural.
    """

    engine: str
    associations: list[Row]
    comparisons: list[Comparison]
    left_out: dict[str, str]
    caveats: list[str]
    sentences: list[str]
    forced: DoseFindings


def find(
    groups: Sequence[Results], engine: str, registered: Registration | None = None
) -> Findings:
    """Associations rest on datasets, comparisons of backends on server starts. `registered`: what
    was asked before the first run; None where a run directory does not say."""
    margin = registered.smallest_effect_pct if registered else comparison.MARGIN_PCT
    rows = [_row(group, metric, margin) for group in groups for metric in NAMES]
    pairs = [
        _compared(one, other, metric, margin)
        for one, other in itertools.combinations(groups, 2)
        for metric in NAMES
    ]
    rows, pairs = corrected(rows, pairs, registered.metric if registered else None)
    sentences = _sentences(rows)
    sentences += [pair.in_words(NAMES[pair.metric][0]) for pair in pairs]
    return Findings(
        engine=engine,
        associations=rows,
        comparisons=pairs,
        left_out=_left_out(groups),
        caveats=_caveats(groups, engine),
        sentences=sentences,
        forced=dose_findings.find(groups),
    )


def _sentences(rows: Sequence[Row]) -> list[str]:
    """One for each row, but only one for all about which the same reason forbids to say more."""
    unknown: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        unknown[row.association.spearman.reason].append(row)
    known = [row.in_words() for row in unknown.pop(None, [])]
    return [*known, *(_all_unknown(reason or "", same) for reason, same in unknown.items())]


def _all_unknown(reason: str, rows: Sequence[Row]) -> str:
    if len(rows) == 1:
        return rows[0].brief
    backends = " and ".join(dict.fromkeys(row.backend for row in rows))
    metrics = ", ".join(dict.fromkeys(NAMES[row.metric][0] for row in rows))
    return f"{metrics} of {backends} against excess CV²: {reason}"


def _caveats(groups: Sequence[Results], engine: str) -> list[str]:
    caveats = [ORDER] if _one_after_the_other(groups) else []
    return [*caveats, BUILTIN] if builtin.is_label(engine) else caveats


def _one_after_the_other(groups: Sequence[Results]) -> bool:
    """Whether two backends never took turns, by the dates of their results."""
    dates = [
        sorted(str(r.date) for r in group.by_label.values()) for group in groups if group.by_label
    ]
    return any(
        one[-1] <= other[0] or other[-1] <= one[0]
        for one, other in itertools.combinations(dates, 2)
    )


def _p_in_words(p: float | None, holm: float | None) -> str:
    return f"p = {p:.2g}" if holm is None else f"p = {holm:.2g} after Holm"


def _slope(found: Association) -> str:
    return found.slope.scaled(PER).shown("+.3g")


def _held(found: Association) -> str:
    """What is left of an association once token counts are held fixed."""
    held: Estimate = found.partial
    if held.value is None:
        return f"; not separable from length: {held.reason}"
    left = "it stays" if held.excludes_zero else "length may account for it"
    return f"; with token counts held fixed {left}: partial Spearman {held.shown('.2f')}"


def _by_dataset(group: Results, keys: Sequence[str]) -> dict[str, Floats]:
    """Dataset → the `keys` of each of its repeats that has them all, [repeats, keys]."""
    seen: dict[str, list[list[float]]] = defaultdict(list)
    for label, result in group.by_label.items():
        figures = [result.number(key) for key in keys]
        known = [value for value in figures if value is not None]
        if len(known) == len(keys):
            seen[label.partition("-")[0]].append(known)
    return {name: np.array(rows) for name, rows in seen.items()}


def _compared(one: Results, other: Results, metric: str, margin_pct: float) -> Comparison:
    sides = [group.by_start(metric) for group in (one, other)]
    return comparison.compare(metric, one.name, other.name, sides, margin_pct)


def _row(group: Results, metric: str, margin_pct: float) -> Row:
    keys = ("excess_squared", metric, *TOKENS)
    found = _by_dataset(group, keys)
    repeats = list(found.values())
    counts = [len(rows) for rows in repeats] or [1]
    points = np.array([rows.mean(axis=0) for rows in repeats]).reshape(-1, len(keys))
    moving = association.influential(points[:, 0], points[:, 1])
    return Row(
        backend=group.name,
        metric=metric,
        association=_associate(points),
        without=_associate(points[~moving]),
        influential=tuple(name for name, moves in zip(found, moving, strict=True) if moves),
        repeats=(min(counts), max(counts)),
        span=float(np.ptp(np.percentile(points[:, 0], MIDDLE))) if len(points) else 0.0,
        typical=float(np.median(points[:, 1])) if len(points) else 0.0,
        margin_pct=margin_pct,
    )


def _associate(points: Floats) -> Association:
    x, y, *tokens = points.T
    return association.associate(x, y, tokens)


def corrected(
    rows: Sequence[Row], pairs: Sequence[Comparison], registered: Metric | None
) -> tuple[list[Row], list[Comparison]]:
    """Holm's correction over all that is tested: both tests of every association, and the verdict
    of every comparison. Those of the metric that was registered before the first run are a family
    of their own, as nobody looked at the others to choose it."""
    found = [row.association for row in rows]
    asked = [place for place, pair in enumerate(pairs) if pair.metric == registered]
    others = [place for place in range(len(pairs)) if place not in asked]
    tests = [*(a.p for a in found), *(a.p_distance for a in found)]
    adjusted = association.holm([*tests, *(pairs[place].p_verdict for place in others)])
    replace = msgspec.structs.replace
    told = [
        replace(row, association=replace(row.association, p_holm=p, p_distance_holm=bent))
        for row, p, bent in zip(rows, adjusted, adjusted[len(rows) :], strict=False)
    ]
    of_asked = association.holm([pairs[place].p_verdict for place in asked])
    holm = dict(zip(others, adjusted[len(tests) :], strict=True))
    holm |= dict(zip(asked, of_asked, strict=True))
    return told, [comparison.corrected(pair, holm[place]) for place, pair in enumerate(pairs)]


def _left_out(groups: Sequence[Results]) -> dict[str, str]:
    """Run id → why it has no excess CV²."""
    return {
        f"{group.name}/{label}": _why_unknown(result)
        for group in groups
        for label, result in group.by_label.items()
        if result.excess_squared is None
    }


def _why_unknown(result: Result) -> str:
    measured = result.measured_imbalance
    why = measured.excess_cv_reason if measured else result.measured_imbalance_reason
    return why or "no imbalance was measured"
