"""Forced routing in tables: its own column, if any run is forced."""

from __future__ import annotations

from core.experiment.state import RunState
from tui.draw.table import Column
from tui.draw.text import Role, Span
from tui.model.view import View

FORCED = Column("forced to", 16, 8, right=False)


def columns(kept: tuple[Column, ...], view: View, after: str) -> tuple[Column, ...]:
    """`kept` with the dose behind the column titled `after`; unchanged if no run has a dose."""
    if not any(run.run.dose for run in view.snapshot.runs.values()):
        return kept
    place = next(n for n, column in enumerate(kept, 1) if column.title == after)
    return (*kept[:place], FORCED, *kept[place:])


def cells(run: RunState, title: str, name: str, role: Role = "") -> dict[str, Span | str]:
    """The name without its dose under `title`, and the dose in its own column."""
    dose = run.run.dose
    forced: Span = (f"{dose.pattern} {dose.level:g}", "warn") if dose else ("", "")
    return {title: (name.partition("~")[0], role), FORCED.title: forced}
