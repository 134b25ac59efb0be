"""Live: the run in progress (or the selected one): progress, latencies and trends, compared with
another backend; where there is room, charts over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from core.experiment import pace
from core.experiment.events import Latency, Sampled
from core.experiment.state import Live as Progress
from core.experiment.state import RunState
from core.plots.labels import LATENCIES as LATENCY_NAMES
from tui.draw import chart, table
from tui.draw.glyphs import STATES
from tui.draw.table import Column
from tui.draw.text import (
    NONE,
    Line,
    Span,
    bar,
    beside,
    clock,
    fit,
    kept,
    line,
    number,
    wrapped,
)
from tui.model import trends
from tui.model.figures import FROM_N, latencies
from tui.model.trends import Trend
from tui.widgets.pane import Pane, empty
from tui.widgets.queue import change

LATENCIES = (
    Column("ms", 5, 9, right=False),
    Column("n", 6, 3),
    Column("mean", 8, 6),
    Column("p50", 8, 8),
    Column("p90", 8, 7),
    Column("p99", 8, 4),
    Column("max", 8, 2),
)
AGAINST_WIDTH = 17  # `p50 Δ vs baseline`
STATISTICS = ("mean", "p50", "p90", "p99", "max")
WHOLE_RUN = (
    ("out tok/s", "output_throughput", 0),
    ("per-step CV", "cv", 3),
    ("excess CV", "excess_cv", 3),
    ("aggregated CV", "aggregated_cv", 3),
    ("rank max/mean", "rank_imbalance", 2),
)
SIDE_BY_SIDE = 90
LEFT, RIGHT = 76, 44  # cells of the latencies, and of the trends beside them at least
CHART = (46, 7)  # the least columns and rows of one
NAMES = 12  # cells of a trend's name


class Live(Pane):
    NUMBER = 2
    NAME = "Live"
    KEYS: ClassVar[str] = " x cancel  n next  f follow "

    def title(self) -> str:
        run = self.view.run
        if run is None:
            return ""
        pinned = " · selected, f follows the run in progress" if self.view.pinned else ""
        forced = f" · {run.run.imposed}" if run.run.imposed else ""
        return (
            f"{run.run.backend} · {run.run.label.partition('~')[0]}{forced} · {run.phase}{pinned}"
        )

    def draw(self, width: int, height: int) -> list[Line]:
        run = self.view.run
        if run is None:
            return self._empty()
        top = self._progress(run, width)
        room = height - len(top)
        if run.phase == "failed":
            return [*top, *self._last_words(run, width, room)]
        if width < SIDE_BY_SIDE:
            both = self._latencies(run, width)
            both += self._beside(run, width, room - len(both))
            return [*top, *both, *self._charts(run, width, room - len(both))]
        half = min(LEFT, width - RIGHT - 2)
        left = self._latencies(run, half)
        rows = len(left) + 2 if room >= len(left) + 2 + CHART[1] else room
        both = beside(left, self._beside(run, width - half - 2, rows), half + 2)
        return [*top, *both, *self._charts(run, width, room - len(both))]

    def _empty(self) -> list[Line]:
        match self.view.stage:
            case "reading":
                return empty("Reading …")
            case "not started" | "failed":
                return empty(
                    "Nothing is running.",
                    "r  start: servers come up one after another, and their runs follow",
                )
            case "running":
                return self._waiting()
        return empty("No run has ended.", "r  resume with the missing runs")

    def _waiting(self) -> list[Line]:
        """A server is starting, or the queue is empty."""
        for name, server in self.view.snapshot.backends.items():
            if server.phase == "starting":
                waited = self.view.now - server.since
                return [
                    Line(),
                    line(
                        "  ", ("~ ", "warn"), f"{name} is starting: {waited:.0f} s  {server.step}"
                    ),
                    line(("  its first run begins when it is ready   l  its log", "dim")),
                ]
        return empty("Nothing is running right now.", "a  add datasets")

    def _progress(self, run: RunState, width: int) -> list[Line]:
        symbol, role = STATES[
            "cut off" if run.phase == "running" and not self.view.running else run.phase
        ]
        live = self.view.snapshot.live
        if live is None or live.run != run.run.id:
            return [self._ended(run, symbol, role), *self._reason(run, width)]
        samples = pace.of_run(self.view.snapshot, run.run.id)
        last = pace.newest(self.view.snapshot, run.run.id)
        done, due = pace.tokens(live, last)
        requests = f"{live.finished:,} of {live.requests:,} requests"
        share = pace.share(live, last)
        said = f"{done:,} of {due:,} tokens {share:.0%}" if due is not None else f"{done:,} tokens"
        took, eta = self.view.now - run.started_at, pace.eta_s(live, samples)
        left = f", ETA {NONE if eta is None else clock(eta)}"
        counts: list[tuple[int, Span]] = [
            (9, (f"{symbol} {said}", role)),
            (6, (f"   {requests}", "")),
            (7, (f"   in flight {number(trends.in_flight(live, last))}", "")),
            (8, (f"   errors {live.errors}", "bad" if live.errors else "")),
            (5, (f"   {clock(took)}{left}", "")),
        ]
        return [line((bar(share, width), "note")), kept(counts, width)]

    def _ended(self, run: RunState, symbol: str, role: str) -> Line:
        figures = run.figures
        if figures is None:
            return line((f"{symbol} {run.phase}", role))
        failed: Span = (f"{figures.failed} failed", "bad" if figures.failed else "dim")
        client = self.view.client
        lag = f"   client lag p99 {number(client.loop_lag_p99_ms, 1)} ms" if client else ""
        return line(
            (f"{symbol} {run.phase}  ", role),
            f"{figures.completed} requests in {figures.duration_s:.1f} s  ",
            failed,
            (lag, "dim"),
        )

    def _reason(self, run: RunState, width: int) -> list[Line]:
        """Why it ended as it did, or what makes its figures doubtful."""
        if self.view.client and self.view.client.warnings:
            return [
                line(("! " + fit(text, width - 2), "warn"))
                for text in self.view.client.warnings[:2]
            ]
        if not run.reason:
            return []
        rows = wrapped(run.reason, width - 2)[:3]
        return [*(line(("  " + text, "bad" if run.phase == "failed" else "dim")) for text in rows)]

    def _last_words(self, run: RunState, width: int, height: int) -> list[Line]:
        """The end of its server's log, if that failed too, and what to do next."""
        server = self.view.snapshot.backends.get(run.run.backend)
        tail = server.log_tail if server and server.phase == "failed" else ()
        again = "R  queue it again" if self.view.running else "r  run it again"
        keys = line((f"{again}   l  the whole log", "dim"))
        shown = tail[-max(height - 3, 0) :]
        said = [line(("  " + fit(text, width - 2), "dim")) for text in shown]
        return [Line(), *said, Line(), keys] if said else [Line(), keys]

    def _latencies(self, run: RunState, width: int) -> list[Line]:
        known = latencies(self.view.snapshot, run)
        other = next(iter(self.view.others(run)), None)
        theirs = other.figures.latencies if other and other.figures else {}
        if not run.figures:  # so far its ITL is another measure: see the footnote
            theirs = {name: value for name, value in theirs.items() if name != "itl"}
        against = _against(other)
        columns = table.fitting((*LATENCIES, against), width)
        rows = [
            table.row(columns, _row(name, against.title, known.get(name), theirs.get(name)))
            for name in LATENCY_NAMES
        ]
        has_p99 = any(column.title == "p99" for column in columns)
        said = self._footnote(run, other, known, has_p99=has_p99)
        footnote = line((fit(said, width), "dim"))
        return [table.head(columns), *rows, footnote]

    def _footnote(
        self, run: RunState, other: RunState | None, known: dict[str, Latency], *, has_p99: bool
    ) -> str:
        if not known and run.phase == "running":
            return "no token has arrived yet"
        against = f"Δ vs {other.run.id}" if other else f"no other backend has run {run.run.label}"
        footnote = f"{against}; p99 from n = {FROM_N}" if has_p99 else against
        return footnote if run.figures else f"{footnote}; TPOT, E2E of ended requests"

    def _beside(self, run: RunState, width: int, height: int) -> list[Line]:
        """The trends of the run in progress; of an ended one, its figures beside another's."""
        if run.figures:
            return _compared(run, next(iter(self.view.others(run)), None))
        found = self._trends(run)
        shown = [*found[0], *found[1], *found[2]][: max(height - 1, 0)]
        room = max(width - NAMES - 8 - chart.SCALE - 3, 1)
        span = min(max((len(t.values) for t in shown), default=0), room)
        title = f"the last {span} s, a cell a second" if span else "no sample yet"
        return [line((fit(title, width), "dim")), *(_trend(t, width) for t in shown)]

    def _charts(self, run: RunState, width: int, height: int) -> list[Line]:
        """TTFT, TPOT, ITL and throughput over time, then the imbalance and the load, as many as
        fit."""
        samples = pace.of_run(self.view.snapshot, run.run.id)
        across, down = width // CHART[0], height // CHART[1]
        if len(samples) < 2 or not across or not down:
            return []
        speed, skew, load = self._trends(run)
        tpot = trends.tpot(samples, self.view.role(run.run.backend))
        ordered = [speed[0], tpot, *speed[1:], *skew, *load][: across * down]
        down = -(-len(ordered) // across)
        each = width // across
        rows: list[Line] = []
        for place in range(0, len(ordered), across):
            drawn: list[Line] = []
            for column, trend in enumerate(ordered[place : place + across]):
                one = _chart(trend, samples, each - 2, height // down)
                drawn = beside(drawn, one, each * column)
            rows += drawn
        return rows

    def _trends(self, run: RunState) -> tuple[list[Trend], list[Trend], list[Trend]]:
        snapshot, name = self.view.snapshot, run.run.id
        samples, live = pace.of_run(snapshot, name), snapshot.live
        own: Progress | None = live if live and live.run == name else None
        speed = trends.latencies(samples, self.view.role(run.run.backend))
        load = trends.load(samples, own, pace.newest(snapshot, name))
        return speed, trends.imbalance(samples), load


def _against(other: RunState | None) -> Column:
    """The column of changes, named after the backend compared with."""
    return Column(f"p50 Δ vs {other.run.backend}" if other else "p50 Δ", AGAINST_WIDTH, 9)


def _compared(run: RunState, other: RunState | None) -> list[Line]:
    """Throughput and imbalance of an ended run, beside those of another backend."""
    figures, theirs = run.figures, other.figures if other else None
    assert figures is not None  # the caller looked
    mine, their = run.run.backend, other.run.backend if other else NONE
    columns = (Column("whole run", 13, right=False), *(Column(n, 9) for n in (mine, their)))
    columns = (*columns, Column("Δ", 6))
    rows = [table.head(columns)]
    for name, field, digits in WHOLE_RUN:
        value, beside_it = getattr(figures, field), getattr(theirs, field) if theirs else None
        cells: dict[str, Span | str] = {
            "whole run": name,
            mine: number(value, digits),
            their: (number(beside_it, digits), "dim"),
            "Δ": change(value, beside_it, more_is_better=field == "output_throughput"),
        }
        rows.append(table.row(columns, cells))
    if figures.imbalance_reason:
        rows.append(line((f"excess {NONE}: {figures.imbalance_reason}", "dim")))
    return rows


def _row(
    name: str, against: str, mine: Latency | None, theirs: Latency | None
) -> dict[str, Span | str]:
    cells: dict[str, Span | str] = {"ms": (LATENCY_NAMES[name], "strong")}
    if mine is None:
        return cells | dict.fromkeys((*STATISTICS, against), (NONE, "dim"))
    digits = 1 if mine.p50 < 1000 else 0
    values: dict[str, Span | str] = {n: number(getattr(mine, n), digits) for n in STATISTICS}
    delta = change(mine.p50, theirs.p50 if theirs else None)
    return cells | values | {"n": number(mine.n), against: delta}


def _trend(trend: Trend, width: int) -> Line:
    return line(
        (fit(trend.name, NAMES), "dim"),
        fit(chart.amount(trend.last, trend.digits), 7, right=True),
        " ",
        (chart.spark(trend.values, width - NAMES - 8, trend.digits), trend.role),
    )


def _chart(trend: Trend, samples: Sequence[Sampled], width: int, height: int) -> list[Line]:
    unit = " ms" if trend.name.endswith("p50") else ""
    span = clock(samples[-1].at - samples[0].at)
    title = f"{trend.name} {chart.amount(trend.last, trend.digits)}{unit}, over {span}"
    return chart.chart(title, trend.values, width, height - 1, trend.digits, trend.role)
