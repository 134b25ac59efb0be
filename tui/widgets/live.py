"""Live: the run in progress (or the pinned one): progress, latencies and throughput, compared with
another backend."""

from __future__ import annotations

from typing import ClassVar

from core.experiment.events import Latency, Sampled
from core.experiment.state import RunState
from core.plots.labels import LATENCIES as LATENCY_NAMES
from tui.draw import table
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
    line,
    number,
    sparkline,
    wrapped,
)
from tui.model.figures import FROM_N, latencies, rates
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
SIDE_BY_SIDE = 110
LEFT = 76  # cells of the latencies, where the throughput is beside them


class Live(Pane):
    NUMBER = 2
    NAME = "Live"
    KEYS: ClassVar[str] = " x cancel  n next  f follow "

    def title(self) -> str:
        run = self.view.run
        if run is None:
            return ""
        pinned = " · pinned, f follows the run in progress" if self.view.pinned else ""
        forced = f" · {run.run.imposed}" if run.run.imposed else ""
        return (
            f"{run.run.backend} · {run.run.label.partition('~')[0]}{forced} · {run.phase}{pinned}"
        )

    def draw(self, width: int, height: int) -> list[Line]:
        run = self.view.run
        if run is None:
            return self._empty()
        top = self._progress(run, width)
        if run.phase == "failed":
            return [*top, *self._last_words(run, width, height - len(top))]
        if width >= SIDE_BY_SIDE:
            right = self._throughput(run, width - LEFT - 2)
            return [*top, Line(), *beside(self._latencies(run, LEFT), right, LEFT + 2)]
        left, right = self._latencies(run, width), self._throughput(run, width)
        return [*top, Line(), *left, Line(), *right][:height]

    def _empty(self) -> list[Line]:
        match self.view.stage:
            case "not started" | "failed" | "reading":
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
        share = live.finished / max(live.requests, 1)
        took = self.view.now - run.started_at
        eta = clock(took * (1 - share) / share) if share else NONE
        sample = self._last(run)
        # requests may have ended since the last sample
        flight = number(max(sample.sent - live.finished, 0)) if sample else NONE
        first = number(max(sample.first_tokens, live.finished - live.errors)) if sample else NONE
        counts = (
            f"{live.finished}/{live.requests} {share:.0%}   {clock(took)}, ETA {eta}"
            f"   in flight {flight}   first token {first}   "
        )
        errors: Span = (f"errors {live.errors}", "bad" if live.errors else "")
        return [line((bar(share, width), "note")), line((f"{symbol} ", role), counts, errors)]

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
        footnote = line((fit(self._footnote(run, other, known), width), "dim"))
        return [table.head(columns), *rows, footnote]

    def _footnote(self, run: RunState, other: RunState | None, known: dict[str, Latency]) -> str:
        if not known and run.phase == "running":
            return "latencies of finished requests; none has finished yet"
        against = f"Δ vs {other.run.id}" if other else f"no other backend has run {run.run.label}"
        footnote = f"{against}; p99 from n = {FROM_N}"
        return footnote if run.figures else f"{footnote}; ITL: medians of requests"

    def _throughput(self, run: RunState, width: int) -> list[Line]:
        samples = self.view.snapshot.samples
        if run.figures:
            return _compared(run, next(iter(self.view.others(run)), None))
        rows: list[tuple[str, list[float], int, str]] = [
            ("out tok/s", rates(samples, "output_tokens"), 0, "note"),
            ("req/s", rates(samples, "finished"), 1, "note"),
            ("in flight", [float(s.sent - s.finished) for s in samples], 0, ""),
        ]
        loads = [s.server for s in samples if s.server]
        if loads:
            rows += [
                ("running", [float(x.running) for x in loads], 0, ""),
                ("waiting", [float(x.waiting) for x in loads], 0, ""),
                ("KV cache %", [x.kv_cache * 100 for x in loads], 0, ""),
            ]
        cvs = [s.imbalance.cv for s in samples if s.imbalance]
        if cvs:
            rows.append(("router CV", cvs, 3, "warn"))
        lines = [line((fit("last two minutes, one sample per second", width), "dim"))]
        return lines + [_trend(*row, width) for row in rows]

    def _last(self, run: RunState) -> Sampled | None:
        last = self.view.snapshot.samples[-1:]
        return last[0] if last and last[0].run == run.run.id else None


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


def _trend(name: str, values: list[float], digits: int, role: str, width: int) -> Line:
    now = number(values[-1] if values else None, digits)
    return line(
        (fit(name, 11), "dim"),
        fit(now, 8, right=True),
        " ",
        (sparkline(values, max(width - 21, 4)), role),
    )
