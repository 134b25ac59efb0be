"""PastRuns: the run directories beside this one; enter opens one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tui.draw.text import cut, safe

if TYPE_CHECKING:
    from core.rundir.past import Past

ROLES = {"running": "▶", "finished": "✓", "unfinished": "!"}


class PastRuns(ModalScreen[Path | None]):
    """Dismissed with the run directory chosen; None means back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,ctrl+c", "leave", "back", priority=True),
        Binding("j", "down"),
        Binding("k", "up"),
    ]

    def __init__(self, found: Sequence[Past], folder: Path) -> None:
        super().__init__()
        self._found, self._folder = found, folder

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog tall") as box:
            box.border_title = Content(safe(f"Runs in {self._folder}"))
            box.border_subtitle = "enter  open (r resumes an unfinished one)   esc  back"
            if not self._found:
                yield Static("No run directory here yet.", markup=False)
            yield OptionList(*(Option(_row(past), id=past.path) for past in self._found))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(Path(event.option.id or "."))

    def action_down(self) -> None:
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        self.query_one(OptionList).action_cursor_up()

    def action_leave(self) -> None:
        self.dismiss(None)


def _row(past: Past) -> Content:
    """Two lines: when and which; how far it came, and what it found."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(past.started_at))
    failed = f", {past.failed} failed" if past.failed else ""
    ended = f"{past.done} of {past.runs} done{failed}"
    head = f"{ROLES[past.state]} {when}  {past.state:<10}  {ended}  {past.engine}"
    return Content(safe(head) + "\n" + safe(f"    {cut(past.path, 44)}  {past.headline}"))
