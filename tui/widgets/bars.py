"""The lines around the panes: header, tabs, message, and keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.experiment import pace
from tui.draw.glyphs import STATES
from tui.draw.text import Line, Span, clock, kept, line, runs
from tui.model.view import View
from tui.widgets.happenings import event_line

if TYPE_CHECKING:
    from tui.model.session import Session


def header(view: View, width: int) -> Line:
    """Name, state, progress, engine, times; what is needed least is dropped where it does not
    fit."""
    snapshot = view.snapshot
    symbol, role = STATES[view.stage]
    parts: list[tuple[int, Span]] = [
        (10, (" gatescope ", "strong")),
        (10, (f" {symbol} {view.stage}", role)),
    ]
    if failed := snapshot.count("failed"):
        parts.append((9, (f"  ! {failed} failed", "bad")))
    if view.paused:
        parts.append((9, ("  display frozen", "warn")))
    if snapshot.runs:
        parts.append((8, (f"  {snapshot.count('done')} of {len(snapshot.runs)} done", "")))
    if view.running and snapshot.live:
        errors = snapshot.live.errors
        parts.append((7, (f"  errors {errors}", "bad" if errors else "")))
    if snapshot.started_at:
        until = view.now if view.stage == "running" else view.last_at
        parts.append((4, (f"  elapsed {clock(until - snapshot.started_at)}", "")))
    eta = pace.left_s(snapshot, view.now)
    if view.stage == "running" and eta is not None:
        parts.append((5, (f"  ETA {clock(eta)}", "")))
    parts.append((6, (f"  {snapshot.engine or 'engine auto'}", "note")))
    parts.append((2, (f"  {view.hz:g} Hz", "dim")))
    if view.run_dir:
        parts.append((3, (f"  {view.run_dir}", "dim")))
    return kept(parts, width)


def tabs(names: Sequence[str], active: str) -> Line:
    """` 1 Queue [2 Live] 3 Servers …`."""
    spans: list[Span] = []
    for place, name in enumerate(names, 1):
        text = f"{place} {name}"
        spans.append((f"[{text}]", "strong") if name == active else (f" {text} ", "dim"))
    return Line(tuple(spans))


def message(session: Session, view: View, width: int, *, shows_events: bool) -> Line:
    """What is wrong; else what can be started; else the last event, unless Events shows it."""
    if session.problem:
        return line((f" ! {session.problem}", "bad"))
    if session.stage == "engine gone":
        log = f"{view.run_dir}/engine.log"
        return line((f" ! the engine has died; r resumes the missing runs; its log: {log}", "bad"))
    if session.stage == "not started" and view.snapshot.runs:
        older = f"   b  opens {session.unfinished}, unfinished" if session.unfinished else ""
        return line((f" r  starts {runs(len(view.snapshot.runs))}{older}", "note"))
    if shows_events or not view.happened:
        return Line()
    return event_line(view.happened[-1], width)


def that_fit(hints: Sequence[tuple[str, str]], width: int) -> list[tuple[str, str]]:
    """The first hints, as many as `width` cells hold."""
    used, kept = 0, []
    for key, label in hints:
        used += _cells(key, label)
        if used > width:
            break
        kept.append((key, label))
    return kept


def room(hints: Sequence[tuple[str, str]]) -> int:
    """Cells that `keys` needs for these."""
    return sum(_cells(key, label) for key, label in hints)


def keys(hints: Sequence[tuple[str, str]]) -> Line:
    """Keys and what they do."""
    return Line(
        tuple(span for key, label in hints for span in ((f" {key} ", "key"), (f" {label} ", "")))
    )


def _cells(key: str, label: str) -> int:
    return len(key) + len(label) + 4
