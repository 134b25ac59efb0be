"""DoseScreen: what imposed skew costs: a metric of the forced-routing runs against the recorded
skew, plotted and in words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget

from core.analysis.dose_response import METRICS, PER
from core.errors import GatescopeError
from core.experiment import dose
from tui.draw import scatter
from tui.draw.scatter import Dot
from tui.draw.text import Line, Span, fit, line, wrapped
from tui.draw.theme import BACKENDS
from tui.screens.page import Page
from tui.widgets.lines import Lines
from tui.widgets.pane import empty

if TYPE_CHECKING:
    from core.analysis.dose_findings import DoseFindings
    from core.plots.dose import DoseAxis
    from core.plots.figure import Series
    from tui.model.session import Session

LEAST_ROWS = 26  # of plot and legend, before words take any
METRIC_KEYS = ("mean_tpot_ms", "decode_step_ms", "mean_ttft_ms", "output_throughput")
AXES: tuple[DoseAxis, ...] = ("cv", "rank")
MARKS = ("●", "▲", "■", "◆", "○", "△", "□", "◇", "+", "×")  # one per curve; a colour per backend


class DoseScreen(Page):
    """Redrawn when a run ends. `in_words`: the sentences fill the screen, and scroll."""

    HINTS = (("p", "metric"), ("i", "skew axis"), ("v", "words"), ("e", "export"), ("esc", "back"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,D,ctrl+c", "dismiss", "back"),
        Binding("p", "metric", "metric"),
        Binding("i", "axis", "axis"),
        Binding("v", "words", "words"),
        Binding("e", "export", "export"),
    ]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self.metric, self.axis, self.in_words = METRIC_KEYS[0], AXES[0], False
        self._top = 0
        self._said = ""
        self._found: DoseFindings | None = None
        self._asked: object = None  # the finished runs that the findings are about

    def above(self) -> Iterable[Widget]:
        yield Lines("header")

    def below(self) -> Iterable[Widget]:
        yield Lines("message")

    def draw(self) -> None:
        self.query_one("#header", Lines).put([self._header()])
        self._follow()
        body = self.body
        if self._found:
            body.put(self._words(*body.size) if self.in_words else self._plot(*body.size))
        else:
            body.put(empty("computing slopes and intervals …"))
        self.query_one("#message", Lines).put([line((f" {self._said}", "note"))])

    def _follow(self) -> None:
        """Compute the findings again if more runs have finished: in a thread, since it takes a
        moment."""
        key = tuple(id(run.figures) for run in self._session.snapshot.runs.values() if run.figures)
        if key != self._asked:
            self._asked = key
            self.run_worker(self._compute, thread=True)

    def _compute(self) -> None:
        from core.analysis import dose_findings
        from tui.model import series

        self._found = dose_findings.find(series.groups(self._session.snapshot))
        self.app.call_from_thread(self.show)

    def findings(self) -> DoseFindings:
        """The findings about the finished runs, as last computed."""
        assert self._found  # nothing is drawn or exported before that
        return self._found

    def series(self) -> Series:
        """What is drawn, and what `e` writes. GatescopeError if no forced run has both values."""
        from core.plots import dose as figure

        return figure.series(self.findings(), self.metric, self.axis, self._session.snapshot.engine)

    # --- drawing ---

    def _header(self) -> Line:
        about = f"   engine {self._session.snapshot.engine}   {self._session.run_dir}"
        return line((f" {dose.NAME}: what imposed skew costs", "strong"), (about, "dim"))

    def _plot(self, width: int, height: int) -> list[Line]:
        """The plot, with the slope of each curve; below it, if there is room, how the curves
        compare."""
        try:
            drawn = self.series()
        except GatescopeError as error:
            return empty(*wrapped(str(error), width - 4), "p  another metric   i  the other axis")
        words = [row for text in self._compared() for row in wrapped(text, width - 2, "  ")]
        room = max(0, min(len(words), height - LEAST_ROWS))
        if 0 < room < len(words):
            words[room - 1 :] = ["… press v to read all of it"]
        head = [
            line((fit(f" {drawn.y_label} ↑   {drawn.x_label} →", width), "")),
            *_legend(drawn, self._slopes(), width),
            line((fit(f" {drawn.note}", width), "dim")),
        ]
        plot = scatter.draw(dots(drawn), width, height - len(head) - room, joined=True)
        return [*head, *plot, *(line(f" {row}") for row in words[:room])]

    def _slopes(self) -> dict[str, str]:
        """Curve → its slope along the axis, in brief."""
        unit = METRICS[self.metric][1]
        per = {
            f"{c.backend}, {c.pattern}": c.per_cv if self.axis == "cv" else c.per_rank
            for c in self.findings().curves
            if c.metric == self.metric
        }
        return {
            name: f"{slope.shown('+.2g')} {unit} per {PER}"
            for name, slope in per.items()
            if slope.value is not None
        }

    def _compared(self) -> list[str]:
        """How the curves of this metric compare."""
        found = self.findings()
        crossings = [c.in_words() for c in found.crossings if c.metric == self.metric]
        return crossings + [w.in_words() for w in found.rank_waits if w.metric == self.metric]

    def _words(self, width: int, height: int) -> list[Line]:
        found = self.findings()
        texts = [
            *found.sentences,
            *(f"{run} left out: {why}" for run, why in found.left_out.items()),
        ]
        rows = [row for text in texts for row in (*wrapped(text, width - 2, "  "), "")]
        self._top = max(0, min(self._top, len(rows) - height))
        return [line(f" {row}") for row in rows[self._top : self._top + height]]

    # --- keys ---

    def action_metric(self) -> None:
        self.metric = METRIC_KEYS[(METRIC_KEYS.index(self.metric) + 1) % len(METRIC_KEYS)]
        self.show()

    def action_axis(self) -> None:
        self.axis = AXES[(AXES.index(self.axis) + 1) % len(AXES)]
        self.show()

    def action_words(self) -> None:
        self.in_words = not self.in_words
        self.show()

    def action_scroll(self, by: int) -> None:
        self._top = max(0, self._top + by)
        self.show()

    def action_export(self) -> None:
        if self._found:
            self.run_worker(self._export, thread=True)

    def _export(self) -> None:
        from core.plots import dose as figure
        from tui.model import export, gallery

        run_dir, backends = Path(self._session.run_dir or ""), list(self._session.snapshot.backends)
        name = f"{figure.name(self.metric, self.axis)}.png"
        file = run_dir / "graphs" / name
        self._said = export.plot(
            lambda: gallery.marked(self.series(), run_dir, backends), figure.csv_text, file
        )
        self.app.call_from_thread(self.show)


def dots(series: Series) -> list[Dot]:
    """The points of its curves, in order, with their intervals."""
    return [
        Dot(
            curve.place,
            curve.name,
            x,
            y,
            mark=MARKS[place % len(MARKS)],
            low=_end(low),
            high=_end(high),
        )
        for place, curve in enumerate(series.curves)
        if curve.low is not None and curve.high is not None
        for x, y, low, high in zip(
            curve.x.tolist(), curve.y.tolist(), curve.low.tolist(), curve.high.tolist(), strict=True
        )
    ]


def _end(value: float) -> float | None:
    return None if math.isnan(value) else value


def _legend(series: Series, slopes: dict[str, str], width: int) -> list[Line]:
    """The mark, name and slope of each curve, in as many rows as they need."""
    rows: list[list[Span]] = [[(" ", "")]]
    for place, curve in enumerate(series.curves):
        text = (
            f"{MARKS[place % len(MARKS)]} {curve.name}  {slopes.get(curve.name, '')}".rstrip()
            + "   "
        )
        if len(rows[-1]) > 1 and sum(len(part) for part, _ in rows[-1]) + len(text) > width:
            rows.append([(" ", "")])
        rows[-1].append((text, BACKENDS[curve.place % 4]))
    return [Line(tuple(row)) for row in rows]
