"""Forced routing in a report and at the end of a batch: the section, and a table of every dose."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.analysis.dose_findings import DoseFindings
from core.analysis.dose_response import HIGHER_IS_BETTER, METRICS, PER, Curve, Level, spanned
from core.errors import NoDataError
from core.plots.gallery import Drawn
from core.report import document
from core.report.document import heading, items, text
from core.stats.written import p_value
from core.terminal import shown

TITLE = "What imposed skew costs (forced routing)"
WHAT = (
    "In these runs the router was overruled: each token's experts were drawn so that expert load "
    "has the CV of the level (the dose: a target imbalance), and the input stayed the same. "
    "So skew was set, and did not come along with something else. "
    "The text that such runs generate means nothing. They are in none of the other sections."
)
METHOD = (
    "Skew is as recorded: aggregated CV of expert load "
    "(under rotating, whose hot experts move, the steps' excess CV). "
    "Square brackets hold 95 % intervals, each on its own. With fewer than 8 datasets they rest on "
    "the spread between repeats and speak for these datasets; from 8 on they rest on the datasets. "
    "Differences between backends leave out what a restart moves (elsewhere about 1.3 %). "
    "p is Student's, corrected by Holm over all slopes, bends and differences of hot-rank to "
    "spread; an effect is reported only where both agree. "
    "Natural routing stands beside as a reference and is in no fit."
)
POOLED = (
    "its values are means over them. To separate datasets that may respond differently, such as "
    "those of other sizes, use: gatescope report RUN_DIR --only 001."
)
NATURAL = "natural"
HEADLINES = ("mean_tpot_ms", "decode_step_ms")  # the rest is in the tables


def parts(found: DoseFindings, drawn: Sequence[str]) -> list[str]:
    """The section with its pictures; nothing where no routing was forced."""
    if not found.curves and not found.left_out:
        return []
    head, rows = levels(found, intervals=True)
    tables = [document.table(head, rows), _slopes(found)]
    if found.crossings:
        tables.append(_crossings(found))
    if found.rank_waits:
        tables.append(_waits(found))
    left_out = [f"left out: {run}: {why}" for run, why in found.left_out.items()]
    return [
        heading(TITLE),
        text(WHAT),
        *_pooled(found),
        items([*found.sentences_about(HEADLINES), *left_out]),
        *drawn,
        *tables,
        text(METHOD),
    ]


def _pooled(found: DoseFindings) -> list[str]:
    """How many datasets a value is the mean over, where they are several."""
    counts = [curve.datasets for curve in found.curves]
    if max(counts, default=0) < 2:
        return []
    return [text(f"Each curve pools {spanned(counts)} datasets: {POOLED}")]


def pictures(
    found: DoseFindings, folder: Path, engine: str, note: str = "", invalid: str = ""
) -> Iterator[Drawn]:
    """<metric>-forced-<axis>.png in `folder`, against CV and, where there are ranks, their load;
    `note` is appended to each figure's own, and *INVALID* is on it where `invalid` says why.
    OSError where they cannot be written."""
    from core.plots import dose, png
    from core.plots.figure import marked, noted

    for metric in METRICS:
        for axis in dose.AXES:
            with contextlib.suppress(NoDataError):  # no dose has both
                drawn = noted(dose.series(found, metric, axis, engine), note)
                drawn = marked(drawn, invalid)
                file = png.write(drawn, folder / f"{dose.name(metric, axis)}.png")
                yield Drawn("forced", file, drawn.title, (drawn,))


def levels(found: DoseFindings, *, intervals: bool = False) -> tuple[list[str], list[list[str]]]:
    """Every dose of every backend with what it came to, natural routing beside it: a table's head
    and its rows."""
    columns = [", ".join(names) for names in METRICS.values()]
    head = ["pattern", "backend", "level", "CV", "rank max/mean", "runs", *columns]
    cells: dict[tuple[str, str, str], dict[str, Level]] = {}
    for pattern, backend, metric, level in _each(found):
        aimed = "" if pattern == NATURAL else f"{level.level:g}"
        cells.setdefault((pattern, backend, aimed), {})[metric] = level
    return head, [[*key, *_level(of, intervals=intervals)] for key, of in cells.items()]


def table(found: DoseFindings) -> str:
    """`levels` in columns of text."""
    head, rows = levels(found)
    return document.in_columns([head, *rows])


def _each(found: DoseFindings) -> Iterator[tuple[str, str, str, Level]]:
    yield from ((NATURAL, n.backend, n.metric, n.at) for n in found.natural)
    yield from ((c.pattern, c.backend, c.metric, level) for c in found.curves for level in c.levels)


def _level(of: dict[str, Level], *, intervals: bool) -> list[str]:
    one = next(iter(of.values()))
    runs = str(max(level.n for level in of.values()))
    figures = [_figure(of.get(metric), intervals=intervals) for metric in METRICS]
    return [f"{one.cv:.3f}", shown(one.rank, ".2f"), runs, *figures]


def _figure(level: Level | None, *, intervals: bool) -> str:
    if level is None:
        return "–"
    return level.value.shown(".4g") if intervals else shown(level.value.value, ".4g")


def _slopes(found: DoseFindings) -> str:
    head = [
        "pattern",
        "backend",
        "metric",
        "runs",
        f"per {PER} of CV",
        "p (Holm)",
        f"per {PER} of rank max/mean",
        "shape",
    ]
    rows = [
        [
            c.pattern,
            c.backend,
            ", ".join(METRICS[c.metric]),
            str(c.n),
            c.per_cv.shown("+.3g"),
            p_value(c.p_holm),
            c.per_rank.shown("+.3g"),
            _shape(c),
        ]
        for c in found.curves
    ]
    return document.table(head, rows)


def _shape(curve: Curve) -> str:
    if curve.bends:
        return "bends"
    return "–" if curve.per_cv.value is None else "no bend detected"


def _crossings(found: DoseFindings) -> str:
    better = {metric: "more" if metric in HIGHER_IS_BETTER else "less" for metric in METRICS}
    head = ["pattern", "metric (the better)", "backend", "against", "outcome", "crosses at a CV of"]
    rows = [
        [
            c.pattern,
            f"{METRICS[c.metric][0]} ({better[c.metric]})",
            c.other,
            c.reference,
            c.verdict,
            c.at.shown(".2f"),
        ]
        for c in found.crossings
    ]
    return document.table(head, rows)


def _waits(found: DoseFindings) -> str:
    head = ["backend", "metric", "hot-rank less spread", "p (Holm)", "spread over level 0"]
    rows = [
        [
            w.backend,
            ", ".join(METRICS[w.metric]),
            w.mean.shown("+.3g"),
            p_value(w.p_holm),
            w.spread.shown("+.3g"),
        ]
        for w in found.rank_waits
    ]
    return document.table(head, rows)
