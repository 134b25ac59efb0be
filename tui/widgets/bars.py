"""The lines around the panes: header, tabs, message, and keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tui.draw.glyphs import STATES
from tui.draw.text import Line, Span, clock, line, runs
from tui.model.view import View
from tui.widgets.happenings import event_line

if TYPE_CHECKING:
    from tui.model.session import Session


def header(view: View, width: int) -> Line:
    """Name, state, progress, times; what does not fit is dropped from the right."""
    snapshot = view.snapshot
    symbol, role = STATES[view.stage]
    parts: list[Span] = [(" gatescope ", "strong"), (f" {symbol} {view.stage}", role)]
    if failed := snapshot.count("failed"):
        parts.append((f"   ! {failed} failed", "bad"))
    if view.paused:
        parts.append(("   display frozen", "warn"))
    if snapshot.runs:
        parts.append((f"   {snapshot.count('done')} of {len(snapshot.runs)} done", ""))
    if snapshot.started_at:
        until = view.now if view.stage == "running" else view.last_at
        parts.append((f"   elapsed {clock(until - snapshot.started_at)}", ""))
    eta = snapshot.eta_s()
    if view.stage == "running" and eta is not None:
        parts.append((f"   ETA {clock(eta)}", ""))
    parts.append((f"   engine {snapshot.engine or 'auto'}", "note"))
    parts.append((f"   {view.hz:g} Hz", "dim"))
    if view.run_dir:
        parts.append((f"   {view.run_dir}", "dim"))
    while len(parts) > 2 and sum(len(t) for t, _ in parts) > width:
        parts.pop()
    return Line(tuple(parts))


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
        return line((f" r  starts {runs(len(view.snapshot.runs))}", "note"))
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
