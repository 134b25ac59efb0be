"""The keys on the bottom line: those that do something now; help, palette and quit always."""

from __future__ import annotations

from tui.actions import BY_NAME, why_not
from tui.model.view import View
from tui.widgets import bars

FIRST = (  # the most useful first: the line may hold only some
    "run",
    "cancel",
    "pause",
    "next",
    "retry",
    "findings",
    "config",
    "dose",
    "filter",
    "maximise",
    "add",
    "log",
    "export",
    "stop_server",
)
LAST = ("help", "palette", "quit")


def shown(view: View, width: int) -> list[tuple[str, str]]:
    """(key, label) of each, as many as `width` cells hold."""
    return [_hint(name) for name in names(view, width)]


def names(view: View, width: int) -> list[str]:
    """The actions of the keys shown."""
    able = [name for name in FIRST if not why_not(BY_NAME[name], view)]
    left = width - bars.room([_hint(name) for name in LAST])
    return [*able[: len(bars.that_fit([_hint(name) for name in able], left))], *LAST]


def _hint(name: str) -> tuple[str, str]:
    return BY_NAME[name].key_text, BY_NAME[name].label
