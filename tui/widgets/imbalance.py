"""Imbalance: the router layer by layer, with its noise floor, and every expert's load as a heat
map."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from core.experiment.events import RunFigures
from core.experiment.state import RunState
from core.plots import palette
from tui.draw import table
from tui.draw.table import Column
from tui.draw.text import NONE, Line, Span, fit, line, number, wrapped
from tui.model.view import Price, View
from tui.widgets import doses
from tui.widgets.pane import Pane, empty

if TYPE_CHECKING:
    from core.routing.layers import LayerLoad

LAYERS = (
    Column("", 3, 9, right=False),
    Column("CV", 6, 8),
    Column("floor", 6, 5),
    Column("excess", 6, 9),
    Column("rank", 5, 6),
    Column("work", 5, 3),
    Column("hot", 4, 7),
    Column("share", 6, 4),
)
RUNS = (
    Column("run", 16, 9, right=False),
    Column("predicted", 9, 5),
    Column("per-step", 8, 8),
    Column("excess", 7, 8),
    Column("aggregated", 10, 7),
    Column("rank", 5, 4),
    Column("work", 5, 3),
    Column("cost %", 6, 6),
)
LEAST = 28  # cells of the columns that must stay


class Imbalance(Pane):
    NUMBER = 4
    NAME = "Imbalance"
    KEYS: ClassVar[str] = " w window  O worst first  v by run "

    def __init__(self) -> None:
        super().__init__()
        self.worst_first = False
        self.recent = False
        self.by_run = False

    def rows(self) -> tuple[LayerLoad, ...]:
        found = self.view.load.layers if self.view.load else ()
        return tuple(sorted(found, key=lambda x: -(x.excess or 0.0))) if self.worst_first else found

    def runs(self) -> list[RunState]:
        """Finished runs, which `by_run` lists."""
        return [r for r in self.view.snapshot.runs.values() if r.figures]

    def listed(self) -> list[str]:
        return [r.run.id for r in self.runs()] if self.by_run else []

    def count(self) -> int:
        return len(self.runs() if self.by_run else self.rows())

    def title(self) -> str:
        load = self.view.load
        if self.by_run:
            return "CV of expert load, by run"
        if load is None or not load.layers:
            return ""
        window = f"last {load.steps} steps" if load.recent else f"{load.steps} steps"
        return f"{load.run} · {window} · {load.tokens:,} tokens"

    def draw(self, width: int, height: int) -> list[Line]:
        if self.by_run:
            return self._runs(width, height)
        layers = self.rows()
        if not layers:
            return [*self._summary(width), *self._empty(width)]
        columns, cell = self._room(len(layers[0].shares), width)
        head = self._summary(width)
        shown = self.window(height - len(head) - 2)
        body = [
            self._layer(columns, layers[i], cell, width, cursor=self.is_cursor(i)) for i in shown
        ]
        heads = self._heads(columns, len(layers[0].shares), cell, width)
        lines = [*head, heads, *body, self._detail(layers, width)]
        has_room = height - len(lines) > len(self.view.backends) + 1
        return [*lines, *self._same_dataset(width)] if has_room else lines

    def change_order(self) -> None:
        self.worst_first = not self.worst_first

    def change_window(self) -> str:
        self.recent = not self.recent
        return "load of the last steps" if self.recent else "load of the whole run"

    def change_rows(self) -> None:
        self.by_run = not self.by_run

    def _empty(self, width: int) -> list[Line]:
        load = self.view.load
        if load and load.problem:
            return empty(fit(load.problem, width - 2))
        if not self.view.snapshot.runs:
            return empty("No run yet.")
        if self.view.run and self.view.run.phase == "running":
            return empty("Waiting for the first steps in the gate log …")
        return empty("No gate log for this run.", "1  Queue: enter shows another run")

    def _same_dataset(self, width: int) -> list[Line]:
        """The runs of the same dataset at every backend."""
        shown = self.view.run
        same = [r for r in self.runs() if shown and r.run.label == shown.run.label]
        columns = table.fitting(doses.columns(self._run_columns(), self.view, "run"), width)
        if not same:
            return []
        rows = (table.row(columns, self._of_run(r)) for r in same)
        return [Line(), table.head(columns), *rows]

    def _runs(self, width: int, height: int) -> list[Line]:
        """Per-step, excess and aggregated CV of every finished run; below, why the run under the
        cursor has no excess."""
        runs = self.runs()
        columns = table.fitting(doses.columns(self._run_columns(), self.view, "run"), width)
        body = [
            table.row(columns, self._of_run(runs[i]), cursor=self.is_cursor(i))
            for i in self.window(height - 2)
        ]
        here = runs[self.at].figures if runs else None
        reason = here.imbalance_reason if here else ""
        detail = fit(f"{runs[self.at].run.id}: excess {NONE}: {reason}", width) if reason else ""
        return [table.head(columns), *body, line((detail, "dim"))]

    def _run_columns(self) -> tuple[Column, ...]:
        figures = (run.figures for run in self.runs())
        known = _known(RUNS, any(of and of.work_over_fair is not None for of in figures))
        return tuple(c for c in known if self.view.prices or c.title != "cost %")

    def _of_run(self, run: RunState) -> dict[str, Span | str]:
        figures = run.figures
        assert figures is not None  # runs() holds finished runs
        is_known = figures.excess_cv is not None
        excess: Span = (number(figures.excess_cv, 3), "warn" if is_known else "dim")
        return {
            **doses.cells(run, "run", run.run.id, self.view.role(run.run.backend)),
            "predicted": number(run.score, 4),
            "per-step": number(figures.cv, 3),
            "excess": excess,
            "aggregated": number(figures.aggregated_cv, 3),
            "rank": number(figures.rank_imbalance, 2),
            "work": number(figures.work_over_fair, 2),
            "cost %": _percent(_price_of(run, self.view)),
        }

    def _summary(self, width: int) -> list[Line]:
        """The run's figures, or the last second's while it runs."""
        run = self.view.run
        if run and run.figures:
            figures = run.figures
            text = (
                f"per-step CV {number(figures.cv, 3)}  excess {_excess(figures)}  "
                f"aggregated CV {number(figures.aggregated_cv, 3)}"
            )
            return [line((fit(text, width), "strong")), *self._price(run, width)]
        live = [
            s.imbalance
            for s in self.view.snapshot.samples
            if s.run == self.view.shown and s.imbalance
        ]
        if not live:
            return []
        last = live[-1]
        text = (
            f"last second: CV {last.cv:.3f}  excess {number(last.excess_cv, 3)}  "
            f"rank {number(last.rank_imbalance, 2)}"
        )
        return [line((fit(text, width), "strong"))]

    def _price(self, run: RunState, width: int) -> list[Line]:
        """What the dataset's routing costs, once there are findings."""
        price = _price_of(run, self.view)
        if price is None:
            return []
        text = f"over a fair router, {price.words}"
        role = "warn" if price.is_detected else "dim"
        return [line((row, role)) for row in wrapped(text, width, "  ")[:2]]

    def _room(self, experts: int, width: int) -> tuple[tuple[Column, ...], int]:
        """The columns, and the cells per expert in the heat map: 5 or 4 show its load over an even
        share, 1 a shade."""
        columns = _known(LAYERS, any(layer.work is not None for layer in self.rows()))
        whole = _width(columns)
        for cell, least in ((5, whole), (4, whole), (4, LEAST), (1, LEAST)):
            if least + experts * cell <= width:
                return table.fitting(columns, width - experts * cell - 1), cell
        is_free = folded(experts, width - whole) == folded(
            experts, width - LEAST
        )  # the columns cost no cell
        return table.fitting(columns, whole if is_free else LEAST), 1

    def _heads(self, columns: tuple[Column, ...], experts: int, cell: int, width: int) -> Line:
        names = "".join(f"e{e}".rjust(cell) for e in range(experts))
        if cell == 1:
            room = width - _width(columns)
            each = folded(experts, room)
            shared = f", hottest of {each}" if each > 1 else ""
            names = fit(f"e0 … e{experts - 1}{shared}", room)
        return Line((*table.head(columns).spans, (" ", ""), (names, "dim")))

    def _layer(
        self, columns: tuple[Column, ...], layer: LayerLoad, cell: int, width: int, *, cursor: bool
    ) -> Line:
        cells: dict[str, Span | str] = {
            "": (f"L{layer.layer:02d}", "strong"),
            "CV": number(layer.cv, 3),
            "floor": (number(layer.floor, 3), "dim"),
            "excess": (number(layer.excess, 3), "dim" if layer.excess is None else "warn"),
            "rank": number(layer.rank, 2),
            "work": number(layer.work, 2),
            "hot": f"e{layer.hottest}",
            "share": f"{layer.shares[layer.hottest]:.1%}",
        }
        row = table.row(columns, cells)
        each = folded(len(layer.shares), width - _width(columns)) if cell == 1 else 1
        shares = [max(layer.shares[i : i + each]) for i in range(0, len(layer.shares), each)]
        shades = (heat(share * len(layer.shares), cell) for share in shares)
        return Line((*row.spans, (">" if cursor else " ", ""), *shades))

    def _detail(self, layers: tuple[LayerLoad, ...], width: int) -> Line:
        """Why the layer under the cursor has no excess, or what the columns mean."""
        layer = layers[self.at]
        if self.has_focus and layer.reason:
            return line((fit(f"L{layer.layer:02d} excess {NONE}: {layer.reason}", width), "dim"))
        low, high = palette.HEAT_ENDS
        text = (
            f"heat: load × even, {low:g} to {high:g} · floor: a fair router's CV · rank: max/mean"
        )
        if layer.work is not None:
            text += " · work: busiest rank's over fair"
        return line((fit(text, width), "dim"))


def _price_of(run: RunState, view: View) -> Price | None:
    """Of a run whose routing was its own."""
    return None if run.run.imposed else view.prices.get(f"{run.run.backend}/{run.run.dataset}")


def _percent(price: Price | None) -> str:
    return NONE if price is None or price.share is None else f"{price.share:+.1f}"


def _excess(figures: RunFigures) -> str:
    """The excess CV of a run, or a dash and, in brief, why there is none."""
    if figures.excess_cv is None and figures.imbalance_reason:
        return f"{NONE} ({figures.imbalance_reason.partition(':')[0]})"
    return number(figures.excess_cv, 3)


def _known(columns: tuple[Column, ...], has_work: bool) -> tuple[Column, ...]:
    """Without the work of the busiest rank where no kernel's tiling is known."""
    return tuple(c for c in columns if has_work or c.title != "work")


def _width(columns: tuple[Column, ...]) -> int:
    return sum(c.width + 1 for c in columns)


def folded(experts: int, room: int) -> int:
    """How many experts share one cell so that all fit into `room`."""
    return -(-experts // max(room, 1))


def heat(over_even: float, cell: int) -> Span:
    """A share over an even one: its value in `cell` cells, or in one a shade."""
    level = palette.heat_level(over_even)
    if cell > 1:
        return (f"{over_even:.{cell - 3}f} ".rjust(cell), f"heat{level}")
    return (palette.SHADES[palette.heat_level(over_even, len(palette.SHADES))], f"shade{level}")
