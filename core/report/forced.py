"""Forced routing in a report and at the end of a batch: the section, and a table of every dose."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from core.analysis.dose_findings import DoseFindings
from core.analysis.dose_response import HIGHER_IS_BETTER, METRICS, PER, Level, spanned
from core.errors import NoDataError
from core.report.document import Heading, Items, Part, Picture, Table, Text
from core.terminal import shown

TITLE = "What imposed skew costs (forced routing)"
WHAT = (
    "In these runs the router was overruled: each token's experts were drawn so that expert load has the CV of the "
    "level, and the input stayed the same. So skew was set, and did not come along with something else. The text that "
    "such runs generate means nothing. They are in none of the other sections."
)
METHOD = (
    "Skew is as recorded: aggregated CV of expert load (under rotating, whose heat moves, the steps' excess CV). "
    "Square brackets hold 95 % intervals, each on its own. With fewer than 8 datasets they rest on the spread between "
    "repeats and speak for these datasets; from 8 on they rest on the datasets. p is Student's, corrected by Holm "
    "over all slopes, bends and differences of hot-rank to spread; an effect is said to be seen where both agree. "
    "Natural routing stands beside as a reference and is in no fit."
)
POOLED = (
    "its values are means over them. Datasets that may respond otherwise, such as those of other sizes, are told "
    "apart with: gatescope report RUN_DIR --only 001."
)
NATURAL = "natural"
TOLD = ("mean_tpot_ms", "decode_step_ms")  # the rest is in the tables


def parts(found: DoseFindings, path: Path, engine: str, note: str = "") -> list[Part]:
    """The section, its PNGs drawn under `path`, with `note` at the end of each one's own; nothing
    where no routing was forced. OSError where they cannot be."""
    if not found.curves and not found.left_out:
        return []
    head, rows = levels(found, intervals=True)
    tables: list[Part] = [Table(head, rows), _slopes(found)]
    tables += [_crossings(found)] * bool(found.crossings) + [_waits(found)] * bool(found.rank_waits)
    left_out = [f"left out: {run}: {why}" for run, why in found.left_out.items()]
    return [
        Heading(TITLE),
        Text(WHAT),
        *_pooled(found),
        Items([*found.sentences_about(TOLD), *left_out]),
        *(
            Picture(file.relative_to(path).as_posix(), title)
            for file, title in pictures(found, path, engine, note)
        ),
        *tables,
        Text(METHOD),
    ]


def _pooled(found: DoseFindings) -> list[Part]:
    """How many datasets a value is the mean over, where they are several."""
    counts = [curve.datasets for curve in found.curves]
    if max(counts, default=0) < 2:
        return []
    return [Text(f"Each curve pools {spanned(counts)} datasets: {POOLED}")]


def pictures(
    found: DoseFindings, path: Path, engine: str, note: str = ""
) -> Iterator[tuple[Path, str]]:
    """graphs/<metric>-forced-<axis>.png against CV and, where there are ranks, their load; and the
    title of each."""
    from core.plots import dose, png
    from core.plots.figure import noted

    for metric in METRICS:
        for axis in dose.AXES:
            with contextlib.suppress(NoDataError):  # no dose has both
                drawn = dose.series(found, metric, axis, engine)
                yield (
                    png.write(
                        noted(drawn, note), path / "graphs" / f"{dose.name(metric, axis)}.png"
                    ),
                    drawn.title,
                )


def levels(found: DoseFindings, *, intervals: bool = False) -> tuple[list[str], list[list[str]]]:
    """Every dose of every backend with what it came to, natural routing beside it: a table's head
    and its rows."""
    head = [
        "pattern",
        "backend",
        "level",
        "CV",
        "rank max/mean",
        "runs",
        *(", ".join(n) for n in METRICS.values()),
    ]
    cells: dict[tuple[str, str, str], dict[str, Level]] = {}
    for pattern, backend, metric, level in _told(found):
        aimed = "" if pattern == NATURAL else f"{level.level:g}"
        cells.setdefault((pattern, backend, aimed), {})[metric] = level
    return head, [[*key, *_level(of, intervals=intervals)] for key, of in cells.items()]


def table(found: DoseFindings) -> str:
    """`levels` in columns of text."""
    head, rows = levels(found)
    width = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    text = [
        [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, width, strict=True))]
        for r in [head, *rows]
    ]
    return "\n".join("  ".join(row).rstrip() for row in text)


def _told(found: DoseFindings) -> Iterator[tuple[str, str, str, Level]]:
    yield from ((NATURAL, n.backend, n.metric, n.at) for n in found.natural)
    yield from ((c.pattern, c.backend, c.metric, level) for c in found.curves for level in c.levels)


def _level(of: dict[str, Level], *, intervals: bool) -> list[str]:
    one = next(iter(of.values()))
    values = [of[m].value if m in of else None for m in METRICS]
    told = [
        "–" if v is None else v.shown(".4g") if intervals else shown(v.value, ".4g") for v in values
    ]
    return [
        f"{one.cv:.3f}",
        shown(one.rank, ".2f"),
        str(max(level.n for level in of.values())),
        *told,
    ]


def _slopes(found: DoseFindings) -> Table:
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
    return Table(
        head,
        [
            [
                *(c.pattern, c.backend, ", ".join(METRICS[c.metric]), str(c.n)),
                *(c.per_cv.shown("+.3g"), shown(c.p_holm, ".2g"), c.per_rank.shown("+.3g")),
                "bends"
                if c.bends
                else "straight, as far as is seen"
                if c.per_cv.value is not None
                else "–",
            ]
            for c in found.curves
        ],
    )


def _crossings(found: DoseFindings) -> Table:
    better = {metric: "more" if metric in HIGHER_IS_BETTER else "less" for metric in METRICS}
    return Table(
        ["pattern", "metric (the better)", "backend", "against", "outcome", "crosses at a CV of"],
        [
            [
                *(c.pattern, f"{METRICS[c.metric][0]} ({better[c.metric]})", c.other, c.reference),
                *(c.verdict, c.at.shown(".2f")),
            ]
            for c in found.crossings
        ],
    )


def _waits(found: DoseFindings) -> Table:
    return Table(
        ["backend", "metric", "hot-rank less spread", "p (Holm)", "spread over level 0"],
        [
            [
                *(w.backend, ", ".join(METRICS[w.metric]), w.mean.shown("+.3g")),
                *(shown(w.p_holm, ".2g"), w.spread.shown("+.3g")),
            ]
            for w in found.rank_waits
        ],
    )
