"""Queue: every run, or every dataset with its backends paired; filter, order and marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from core.experiment import pace
from core.experiment.state import RunState
from tui.draw import table
from tui.draw.glyphs import STATES
from tui.draw.table import Column
from tui.draw.text import NONE, Line, Span, cut, number, runs
from tui.widgets import doses
from tui.widgets.pane import Pane, empty

RUNS = (
    Column("", 3, 9, right=False),
    Column("#", 3, 2),
    Column("backend", 8, 8, right=False),
    Column("dataset", 7, 9, right=False),
    Column("file", 18, 1, right=False),
    Column("score", 6, 3),
    Column("state", 9, 9, right=False),
    Column("TTFT ms", 8, 7),
    Column("TPOT ms", 8, 7),
    Column("tok/s", 6, 6),
    Column("CV", 5, 4),
    Column("excess", 7, 5),
)
PAIRS = (
    Column("dataset", 8, 9, right=False),
    Column("score", 6, 5),
    Column("backend", 9, 9, right=False),
    Column("TTFT ms", 8, 9),
    Column("Δ TTFT", 6, 8),
    Column("TPOT ms", 7, 9),
    Column("Δ TPOT", 6, 8),
    Column("tok/s", 7, 4),
    Column("CV", 6, 6),
    Column("excess", 6, 7),
)
START = Column("start", 5, 8)
ORDERS: dict[str, Callable[[RunState], Any]] = {
    "queue": lambda r: None,
    "dataset": lambda r: r.run.label,
    "score": lambda r: r.score,
    "TTFT ms": lambda r: mean(r, "ttft"),
    "TPOT ms": lambda r: mean(r, "tpot"),
    "tok/s": lambda r: r.figures and r.figures.output_throughput,
    "CV": lambda r: r.figures and r.figures.cv,
    "excess": lambda r: r.figures and r.figures.excess_cv,
}


class Queue(Pane):
    NUMBER = 1
    NAME = "Queue"
    KEYS: ClassVar[str] = " enter details  m mark  J K move  o order  z reverse  / filter  d pair "

    def __init__(self) -> None:
        super().__init__()
        self.filter = ""
        self.order = "queue"
        self.reverse = False
        self.by_dataset = False
        self.marked: frozenset[str] = frozenset()
        self._digits: dict[str, int] = {}
        self._name_width = 8

    def listed(self) -> list[str]:
        return [r.run.id for r in self.rows()]

    def item_at(self, row: int) -> int | None:
        shown = self.window(self.size.height - 1)
        return shown[row - 1] if 0 < row <= len(shown) else None

    def rows(self) -> list[RunState]:
        """The runs listed: filtered and in order."""
        words = self.filter.lower().split()
        found = [r for r in self.view.snapshot.runs.values() if all(w in _words(r) for w in words)]
        if self.by_dataset:
            return sorted(found, key=lambda r: r.run.label)
        if self.order == "queue":
            return found
        value = ORDERS[self.order]
        known = [r for r in found if value(r) is not None]
        unknown = [r for r in found if value(r) is None]
        return sorted(known, key=value, reverse=self._descends()) + unknown

    def _descends(self) -> bool:
        """Figures from the largest, names from A, unless that is reversed."""
        return (self.order != "dataset") is not self.reverse

    def selected(self) -> RunState | None:
        rows = self.rows()
        return rows[self.at] if self.at < len(rows) else None

    def count(self) -> int:
        return len(self.rows())

    def title(self) -> str:
        snapshot = self.view.snapshot
        ended = [f"{n} {p}" for p in ("done", "failed", "cancelled") if (n := snapshot.count(p))]
        marked = [f"{len(self.marked)} marked"] if self.marked else []
        shown = [f"filter {self.filter!r}: {self.count()} shown"] if self.filter else []
        place = [f"row {self.at + 1} of {self.count():,}"] if self.has_focus and self.rows() else []
        said = [*ended, *marked, *shown, *self._order(), *place]
        return " · ".join([runs(len(snapshot.runs)), *said])

    def _order(self) -> list[str]:
        if self.by_dataset:
            return ["backends paired"]
        if self.order == "queue":
            return []
        return [f"sorted by {self.order}{' from the largest' if self._descends() else ''}"]

    def draw(self, width: int, height: int) -> list[Line]:
        rows = self.rows()
        if not rows:
            return self._empty()
        kept = doses.columns(PAIRS if self.by_dataset else RUNS, self.view, "dataset")
        columns = table.fitting(self._with_starts(kept), width)
        longest = max(len(name) for name in self.view.backends)
        columns = table.widened(columns, "backend", longest, width)
        self._digits = {name: digits(rows, name) for name in ("ttft", "tpot")}
        self._name_width = next(c.width for c in columns if c.title == "backend")
        draw = self._pair if self.by_dataset else self._run
        places = {id: n for n, id in enumerate(self.view.snapshot.runs, 1)}
        shown = self.window(height - 1)
        body = []
        for i in shown:
            cells = draw(rows[i], places[rows[i].run.id])
            body.append(table.row(columns, cells, cursor=self.is_cursor(i), rest=_rest(rows[i])))
        order = "" if self.by_dataset else self.order
        return [table.head(columns, order, "▼" if self._descends() else "▲"), *body]

    def _with_starts(self, kept: tuple[Column, ...]) -> tuple[Column, ...]:
        """`kept` with the server start before the dataset, where a backend has several."""
        if not any(self.view.snapshot.starts(backend) > 1 for backend in self.view.backends):
            return kept
        place = next(n for n, column in enumerate(kept) if column.title == "dataset")
        return (*kept[:place], START, *kept[place:])

    def _empty(self) -> list[Line]:
        if self.view.snapshot.runs:
            return empty(f"No run matches {self.filter!r}.", "esc  show all again")
        if self.view.stage == "reading":
            return empty("Reading …")
        if self.view.problem:
            return empty(
                "Nothing can be run yet; see the message below.", "press r once it is fixed"
            )
        return empty("No runs.", "a  add datasets", "r  run experiments.toml")

    def _run(self, run: RunState, place: int) -> dict[str, Span | str]:
        symbol, role = STATES[self._word(run)]
        mark = "*" if run.run.id in self.marked else " "
        return {
            "": (mark + symbol + (">" if run.run.id == self.view.shown else " "), role),
            "#": (str(place), "dim"),
            "backend": self._backend(run),
            START.title: str(run.run.start),
            **doses.cells(run, "dataset", run.run.label),
            "file": (cut(Path(run.run.file).name, 18), "dim"),
            "score": number(run.score, 4),
            "state": (self._state(run), role),
            **self._figures(run),
        }

    def _state(self, run: RunState) -> str:
        live = self.view.snapshot.live
        if self.view.running == run.run.id and live and live.run == run.run.id:
            return f"run {pace.share(live, pace.newest(self.view.snapshot, live.run)):.0%}"
        return self._word(run)

    def _word(self, run: RunState) -> str:
        """Its phase; a run whose engine has died is cut off."""
        return "cut off" if run.phase == "running" and self.view.stage != "running" else run.phase

    def _pair(self, run: RunState, place: int) -> dict[str, Span | str]:
        """A run, with its change from the first other backend that has run the same dataset."""
        other = next(iter(self.view.others(run)), None)
        first = run.run.backend == self.view.backends[0]
        symbol, role = STATES[self._word(run)]
        cells: dict[str, Span | str] = {
            START.title: str(run.run.start) if first else "",
            **(doses.cells(run, "dataset", run.run.label) if first else {}),
            "score": number(run.score, 4) if first else "",
            "backend": self._backend(run),
            **self._figures(run),
            "Δ TTFT": change(mean(run, "ttft"), mean(other, "ttft")),
            "Δ TPOT": change(mean(run, "tpot"), mean(other, "tpot")),
        }
        return cells if run.figures else cells | {"TTFT ms": (f"{symbol} {run.phase}", role)}

    def _backend(self, run: RunState) -> Span:
        name = run.run.backend
        return (cut(name, self._name_width), self.view.role(name))

    def _figures(self, run: RunState) -> dict[str, Span | str]:
        figures = run.figures
        if figures is None:
            return {}
        return {
            "TTFT ms": number(mean(run, "ttft"), self._digits["ttft"]),
            "TPOT ms": number(mean(run, "tpot"), self._digits["tpot"]),
            "tok/s": number(figures.output_throughput),
            "CV": number(figures.cv, 3),
            "excess": number(figures.excess_cv, 3),
        }

    # --- keys ---

    def narrow(self, words: str) -> None:
        """Show only the runs that contain all of these words."""
        self.filter = words
        self.redraw()

    def chosen(self) -> list[str]:
        """Ids of the marked runs, else of the one under the cursor."""
        marked = [r.run.id for r in self.rows() if r.run.id in self.marked]
        selected = self.selected()
        return marked or ([selected.run.id] if selected else [])

    def mark(self) -> None:
        if run := self.selected():
            self.marked ^= {run.run.id}
            if self.at < self.count() - 1:
                self.action_move(1)

    def next_order(self) -> str:
        names = list(ORDERS)
        self.order = names[(names.index(self.order) + 1) % len(names)]
        self.by_dataset = self.reverse = False
        return "in run order" if self.order == "queue" else f"sorted by {self.order}; z reverses"

    def reverse_order(self) -> str | None:
        if self.order == "queue":
            return "runs stand in run order; press o to sort by a column"
        self.reverse = not self.reverse
        return None

    def pair(self) -> None:
        self.by_dataset = not self.by_dataset


def mean(run: RunState | None, name: str) -> float | None:
    """Mean TTFT, TPOT, ITL or E2E of a finished run, ms."""
    latency = run.figures.latencies.get(name) if run and run.figures else None
    return latency.mean if latency else None


def ms(value: float | None) -> str:
    """Milliseconds to about four digits."""
    if value is None or value < 100:
        return number(value, 2)
    return number(value, 1 if value < 1000 else 0)


def change(value: float | None, other: float | None, *, more_is_better: bool = False) -> Span:
    """`+31%▲`: how much more than the other; a dash if either is unknown."""
    if value is None or not other:
        return (NONE, "dim")
    share = value / other - 1
    if abs(share) < 0.005:
        return ("±0% ", "dim")
    return (
        f"{share:+.0%}{'▲' if share > 0 else '▼'}",
        "ok" if (share > 0) == more_is_better else "warn",
    )


def digits(found: Sequence[RunState], name: str) -> int:
    """Decimals for a column of means: one number of them, that the largest has room for."""
    largest = max((value for run in found if (value := mean(run, name)) is not None), default=0.0)
    return 2 if largest < 100 else 1 if largest < 1000 else 0


def _rest(run: RunState) -> Span | None:
    """Why a run has no figures, shown in their place."""
    return (
        (run.reason, "bad" if run.phase == "failed" else "dim")
        if run.reason and not run.figures
        else None
    )


def _words(run: RunState) -> str:
    return f"{run.run.id} {run.phase} {run.reason}".lower()
