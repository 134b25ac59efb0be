"""Plots: any metric against an imbalance, for all backends, with the run under the cursor; the
figures of the gate logs and of single requests; export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message

from core.errors import GatescopeError
from core.experiment.state import RunState
from core.plots import labels
from tui.draw import scatter
from tui.draw.text import Line, Span, fit, line, number
from tui.widgets.pane import Pane, empty
from tui.widgets.queue import mean, ms

if TYPE_CHECKING:
    from core.plots.figure import Figure, Series
    from core.plots.labels import Axis

METRIC_KEYS = ("mean_tpot_ms", "mean_ttft_ms", "output_throughput", "mean_itl_ms", "mean_e2e_ms")
SCATTER = "scatter"
ROOMY = 10  # rows from which the figures of the point under the cursor are shown too
AXES: tuple[Axis, ...] = ("per-step", "excess", "aggregated", "predicted")


class Plots(Pane):
    NUMBER = 5
    NAME = "Plots"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "left",
            "move(-1)",
            "previous point",
            tooltip="Plots: go to the previous point, or page of a figure",
        ),
        Binding(
            "right",
            "move(1)",
            "next point",
            tooltip="Plots: go to the next point, or page of a figure",
        ),
    ]

    class Exported(Message):
        """Where the files are, or why there are none."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__()
        self.metric = METRIC_KEYS[0]
        self.axis: Axis = AXES[0]
        self.hides_outliers = False
        self._plotted: tuple[object, list[Line]] = (None, [])
        self.figure = SCATTER
        self._asked: object = None  # what the thread last read
        self._panels: list[Figure] = []
        self._problem = ""

    def points(self) -> list[RunState]:
        """Finished runs with natural routing, in run order: the cursor's places."""
        return [r for r in self.view.snapshot.runs.values() if r.figures and not r.run.imposed]

    def listed(self) -> list[str]:
        return [r.run.id for r in self.points()] if self.figure == SCATTER else []

    def count(self) -> int:
        return len(self.points()) if self.figure == SCATTER else len(self._panels)

    def title(self) -> str:
        if self.figure != SCATTER:
            page = f", figure {self.at + 1} of {len(self._panels)}" if self._panels else ""
            return labels.FIGURES[self.figure] + page
        if not self.points():
            return ""
        return f"{labels.metric(self.metric)} ↑  {labels.short_axis(self.axis)} →"

    def keys(self) -> str:
        cursor = "point" if self.figure == SCATTER else "page"
        return f" F figure  p metric  i axis  u outliers  ← → {cursor}  e export "

    def draw(self, width: int, height: int) -> list[Line]:
        if self.figure != SCATTER:
            return self._figure(width, height)
        if not self.points():
            return empty("No run has finished yet.", "each run that finishes adds a point")
        detail = self._detail(width) if height >= ROOMY else []
        return [*self._plot(width, height - len(detail)), *detail]

    def series(self) -> Series:
        """What is drawn, and what `e` writes. GatescopeError if no run has both values."""
        from tui.model import series

        return series.of(self.view.snapshot, self.metric, self.axis)

    # --- keys ---

    def next_figure(self) -> str:
        names = list(labels.FIGURES)
        self.figure = names[(names.index(self.figure) + 1) % len(names)]
        self.at, self._panels, self._problem = 0, [], ""
        return labels.FIGURES[self.figure]

    def next_metric(self) -> None:
        self.figure = SCATTER
        self.metric = METRIC_KEYS[(METRIC_KEYS.index(self.metric) + 1) % len(METRIC_KEYS)]

    def next_axis(self) -> None:
        self.figure = SCATTER
        self.axis = AXES[(AXES.index(self.axis) + 1) % len(AXES)]

    def hide_outliers(self) -> str:
        self.figure = SCATTER
        self.hides_outliers = not self.hides_outliers
        return "outliers hidden" if self.hides_outliers else "outliers shown as hollow marks"

    def export(self) -> None:
        """Write the PNG, and a scatter's CSV too, in a thread."""
        self.run_worker(self._export, thread=True)

    def _export(self) -> None:
        from tui.model import export, gallery, series

        run_dir, backends = Path(self.view.run_dir), self.view.backends
        folder = run_dir / "graphs"
        if self.figure == SCATTER:
            file = folder / f"{self.metric}-{self.axis}.png"
            result = export.plot(
                lambda: gallery.marked(self.series(), run_dir, backends), series.csv_text, file
            )
        else:
            result = export.figure(self._read, folder / f"{self.figure}.png")
        self.app.call_from_thread(self.post_message, self.Exported(result))

    # --- figures other than the scatter ---

    def _figure(self, width: int, height: int) -> list[Line]:
        """The panel under the cursor; read again, off this thread, when the figure changed or a run
        has ended."""
        wanted = (self.figure, self.view.run_dir, len(self.points()))
        if wanted != self._asked and self.view.run_dir:
            self._asked = wanted
            self.run_worker(self._look, thread=True, exclusive=True, group="figure")
        if not self._panels:
            return empty(
                fit(self._problem or "Reading the figure's data …", width - 2),
                "F  next figure",
            )
        at = min(self.at, len(self._panels) - 1)
        key = (self.figure, at, width, height)
        if key != self._plotted[0]:
            from tui.model import gallery

            self._plotted = (key, gallery.lines(self._panels[at], width, height))
        return self._plotted[1]

    def _read(self) -> list[Figure]:
        from tui.model import gallery

        view = self.view
        return gallery.panels(self.figure, Path(view.run_dir), view.backends, view.snapshot.engine)

    def _look(self) -> None:
        figure = self.figure
        try:
            panels, problem = self._read(), ""
        except (OSError, GatescopeError) as error:
            panels, problem = [], str(error)
        self.app.call_from_thread(self._looked, figure, panels, problem)

    def _looked(self, figure: str, panels: list[Figure], problem: str) -> None:
        if figure == self.figure:  # else another figure was chosen meanwhile
            self._panels, self._problem, self._plotted = panels, problem, (None, [])
            self.show(self.view)

    # --- drawing ---

    def _plot(self, width: int, height: int) -> list[Line]:
        """Redrawn only when what it shows has changed."""
        points = self.points()
        here = points[self.at].run.id if self.has_focus else ""
        key = (
            tuple(id(r.figures) for r in points),
            self.metric,
            self.axis,
            self.hides_outliers,
            self.view.invalid,
            here,
            width,
            height,
        )
        if key != self._plotted[0]:
            self._plotted = (key, self._built(here, width, height))
        return self._plotted[1]

    def _built(self, here: str, width: int, height: int) -> list[Line]:
        try:
            drawn = self.series()
        except GatescopeError as error:
            return empty(fit(str(error), width - 2), "p  another metric   i  another axis")
        shown = scatter.dots(drawn, outliers=not self.hides_outliers)
        head = scatter.legend(drawn, width, outliers=not self.hides_outliers)
        if self.view.invalid:
            head = [line((fit(self.view.invalid, width), "bad")), *head]
        head = head[: max(height - scatter.LEAST[1], 1)]  # a plot matters more than its legend
        return [*head, *scatter.draw(shown, width, height - len(head), here)]

    def _detail(self, width: int) -> list[Line]:
        """The figures of the run under the cursor."""
        run = self.points()[self.at]
        figures = run.figures
        assert figures is not None  # points() holds finished runs
        about = (
            f"CV {number(figures.cv, 3)}  excess {number(figures.excess_cv, 3)}"
            f"  predicted {number(run.score, 4)}"
        )
        speed = (
            f"TTFT {ms(mean(run, 'ttft'))} ms  TPOT {ms(mean(run, 'tpot'))} ms"
            f"  {number(figures.output_throughput)} tok/s"
        )
        name: Span = (f"{run.run.id}  ", self.view.role(run.run.backend))
        if width >= len(run.run.id) + len(about) + len(speed) + 4:
            return [line(name, f"{about}  {speed}")]
        return [line(name, about), line((" " * (len(run.run.id) + 2) + speed, ""))]
