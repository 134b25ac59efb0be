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
from core.stats import association, comparison, estimate, power
from core.stats.arrays import Floats
from core.stats.association import Association
from core.stats.comparison import Comparison
from core.stats.estimate import Estimate
from core.stats.written import p_in_words
from core.terminal import shown

HEADLINE = "mean_tpot_ms"
TOKENS = ("total_input_tokens", "total_output_tokens")
MIDDLE = (10, 90)  # percentiles of excess CV², between which a change is stated
UNKNOWN = estimate.none("not known")
HALF = 1.96  # standard errors: half of a 95 % interval
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
    median of the metric; `turn`: what the metric changes by from the middle of excess CV² to both
    ends of that span; `margin_pct`: a smaller change does not matter; `judged`: the likelier
    verdict on the change, by itself, `p_verdict` its p and `p_holm` the p after Holm's correction.

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
    turn: Estimate = UNKNOWN
    margin_pct: float = comparison.MARGIN_PCT
    judged: comparison.Verdict = "inconclusive"
    p_verdict: float | None = None
    p_holm: float | None = None

    @property
    def change(self) -> Estimate:
        """What the slope makes of the metric over `span`, in its unit."""
        return self.association.slope.scaled(self.span)

    @property
    def percent(self) -> Estimate:
        """The same in % of `typical`."""
        return self.in_percent(self.change)

    def in_percent(self, change: Estimate) -> Estimate:
        """`change` in % of `typical`."""
        return change.scaled(100 / self.typical) if self.typical else change

    @property
    def verdict(self) -> str:
        """*larger* where the metric rises or falls by more than the margin; *bends* where it goes
        with excess CV², but not so; *equivalent* where both its change and its turn are within the
        margin; else *inconclusive*. All after Holm's correction."""
        found, p = self.association, self.p_verdict if self.p_holm is None else self.p_holm
        if p is None:
            return "–"
        is_judged = p < association.ALPHA
        if is_judged and self.judged == "larger" and found.is_monotone:
            return "larger"
        if found.bends:
            return "bends"
        return "equivalent" if is_judged and self.judged == "equivalent" else "inconclusive"

    @property
    def needed(self) -> int | None:
        """Datasets like these that would settle it with 80 % power, if the change is as it was
        measured, its interval narrows with the root of n, and the correction stays; None where
        more than `power.MOST` are needed, or nothing is known."""
        change, turn = self.percent, self.in_percent(self.turn)
        if abs(change.value or 0.0) > self.margin_pct:
            return self._datasets(change)
        both = [self._datasets(one) for one in (change, turn)]
        return None if None in both else max(n for n in both if n)

    def _datasets(self, effect: Estimate) -> int | None:
        """Those that place `effect`, in %, on its side of the margin. Its spread is taken to be as
        large as it may be with 80 % confidence: by chance too narrow, it would name too few."""
        from scipy import special

        if effect.value is None or effect.interval is None:
            return None
        level, n = association.ALPHA, self.association.n
        if self.p_holm and self.p_verdict:
            level *= self.p_verdict / self.p_holm
        spread = float(np.ptp(effect.interval)) / 2 / HALF * math.sqrt(n)
        spread *= math.sqrt((n - 2) / float(special.chdtri(n - 2, power.TARGET)))
        return power.starts_for_verdict(
            effect.value, self.margin_pct, spread, paired=True, alpha=level
        )

    @property
    def to_settle(self) -> str:
        """`180 datasets`; empty where there is a verdict."""
        if self.verdict != "inconclusive":
            return ""
        return f"{self.needed or f'>{power.MOST}'} datasets"

    def in_words(self) -> str:
        """One sentence with intervals and n."""
        found = self.association
        if found.spearman.value is None:
            return self.brief
        p = p_in_words(found.p_holm or found.p or 0.0) + (" after Holm" if found.p_holm else "")
        facts = f"{self._changed}; Spearman {found.spearman.shown('.2f')}, {p}{self._robust}"
        if found.bends:
            turned = self.in_percent(self.turn).shown("+.1f")
            facts = f"it turns by {turned} % from the middle to the ends; {facts}"
        if not found.is_monotone:
            return f"{self.brief} ({facts}; {self._of})"
        explained = f"a line explains {found.explained.scaled(100).shown('.0f')} % of its variance"
        return f"{self.brief} ({facts}; {explained}; {self._of}){_held(found)}"

    @property
    def _changed(self) -> str:
        """`over the middle 80 % of the datasets it rises by 0.056 and TPOT changes by -5.0 [-9.1,
        -1.2] %, -2.1 ms: inconclusive; to settle it: 180 datasets`"""
        name, unit = NAMES[self.metric]
        settled = f"; to settle it: {self.to_settle}" if self.to_settle else ""
        return (
            f"over the middle 80 % of the datasets it rises by {self.span:.2g} and {name} changes"
            f" by {self.percent.shown('+.1f')} %, {shown(self.change.value, '+.3g')} {unit}:"
            f" {self.verdict}{settled}"
        )

    @property
    def brief(self) -> str:
        """What is found, without the figures that show it; or why nothing can be said."""
        found, name = self.association, f"{self.backend} {NAMES[self.metric][0]}"
        if found.spearman.value is None:
            return f"{name} against excess CV²: {found.spearman.reason}"
        if not found.is_seen:
            return f"no association of {name} with excess CV² is detected"
        if found.bends:
            return f"{name} depends on excess CV², but is not seen to rise or fall with it"
        return f"{name} {'rises' if found.spearman.value > 0 else 'falls'} with excess CV²"

    @property
    def _robust(self) -> str:
        """The change without the most influential datasets, where there are any."""
        if not self.influential or self.without.slope.value is None:
            return ""
        more = " …" if len(self.influential) > NAMED else ""
        names = ", ".join(self.influential[:NAMED]) + more
        change = self.in_percent(self.without.slope.scaled(self.span)).shown("+.1f")
        return f"; without the most influential ({names}) {change} %"

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
    whole = _associate(points)
    span = float(np.ptp(np.percentile(points[:, 0], MIDDLE))) if len(points) else 0.0
    typical = float(np.median(points[:, 1])) if len(points) else 0.0
    judged: comparison.Verdict = "inconclusive"
    p, turn = None, UNKNOWN
    if whole.slope.interval and span:
        x, y = points[:, 0], points[:, 1]
        judged, p = judge(x, y, margin_pct / 100 * typical, span)
        turn = association.slope(association.folded(x), y)
    return Row(
        backend=group.name,
        metric=metric,
        association=whole,
        without=_associate(points[~moving]),
        influential=tuple(name for name, moves in zip(found, moving, strict=True) if moves),
        repeats=(min(counts), max(counts)),
        span=span,
        typical=typical,
        turn=turn,
        margin_pct=margin_pct,
        judged=judged,
        p_verdict=p,
    )


def judge(x: Floats, y: Floats, margin: float, span: float) -> tuple[comparison.Verdict, float]:
    """The likelier verdict on how much y changes as x does by `span`, and its p. *Equivalent* takes
    that y turns by no more than `margin` either."""
    changes = association.p_equivalent(x, y, margin / span)
    turns = association.p_equivalent(association.folded(x), y, margin)
    return comparison.likelier(association.p_larger(x, y, margin / span), max(changes, turns))


def _associate(points: Floats) -> Association:
    x, y, *tokens = points.T
    return association.associate(x, y, tokens)


def corrected(
    rows: Sequence[Row], pairs: Sequence[Comparison], registered: Metric | None
) -> tuple[list[Row], list[Comparison]]:
    """Holm's correction over all that is tested: every association and the verdict on its change,
    and the verdict of every comparison. Those of the metric that was registered before the first
    run are a family of their own, as nobody looked at the others to choose it."""
    asked = [place for place, pair in enumerate(pairs) if pair.metric == registered]
    others = [place for place in range(len(pairs)) if place not in asked]
    tests = [*(row.association.p for row in rows), *(row.p_verdict for row in rows)]
    adjusted = association.holm([*tests, *(pairs[place].p_verdict for place in others)])
    replace = msgspec.structs.replace
    told = [
        replace(row, association=replace(row.association, p_holm=p), p_holm=judged)
        for row, p, judged in zip(rows, adjusted, adjusted[len(rows) :], strict=False)
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
