"""PastRuns: the run directories and sweeps beside this one; enter opens one, c compares two."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
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
from tui.model import compared
from tui.screens.reading import Reading

if TYPE_CHECKING:
    from core.rundir.past import Past

ROLES = {"running": "▶", "finished": "✓", "unfinished": "!"}


class PastRuns(ModalScreen[Path | None]):
    """Dismissed with the run directory chosen; None means back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,ctrl+c", "leave", "back"),
        Binding("space", "mark", "mark"),
        Binding("c", "compare", "compare"),
        Binding("j", "down"),
        Binding("k", "up"),
    ]

    def __init__(self, found: Sequence[Past], folder: Path) -> None:
        super().__init__()
        self._found, self._folder = found, folder
        self._marked: list[str] = []  # the last two, the earlier first

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog tall") as box:
            box.border_title = Content(safe(f"Runs in {self._folder}"))
            box.border_subtitle = (
                "enter  open (r resumes)   space  mark two, c  compare   esc  back"
            )
            if not self._found:
                yield Static("No run directory here yet.", markup=False)
            yield OptionList(*(Option(self._row(past), id=past.path) for past in self._found))

    def on_mount(self) -> None:
        if self._found:
            self.query_one(OptionList).highlighted = 0

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(Path(event.option.id or "."))

    def action_down(self) -> None:
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        self.query_one(OptionList).action_cursor_up()

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_mark(self) -> None:
        """Mark or unmark the one under the cursor; a third mark takes the oldest one away."""
        options = self.query_one(OptionList)
        option = options.highlighted_option
        if option is None or option.id is None:
            return
        if option.id in self._marked:
            self._marked.remove(option.id)
        else:
            self._marked = [*self._marked[-1:], option.id]
        for past in self._found:
            options.replace_option_prompt(past.path, self._row(past))

    def action_compare(self) -> None:
        """The two that are marked, the one that started first first."""
        by_age = [past.path for past in reversed(self._found) if past.path in self._marked]
        if len(by_age) < 2:
            self.query_one(".dialog").border_title = "Mark two with space, then c compares them"
            return
        before, after = map(Path, by_age)
        title = f"{after.name} against {before.name}"
        self.app.push_screen(Reading(title, partial(compared.of, before, after)))

    def _row(self, past: Past) -> Content:
        """Two lines: when and which; how far it came, and what it found."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(past.started_at))
        failed = f", {past.failed} failed" if past.failed else ""
        ended = f"{past.done} of {past.runs} done{failed}"
        mark = "x" if past.path in self._marked else " "
        head = f"[{mark}] {ROLES[past.state]} {when}  {past.state:<10}  {ended}  {past.engine}"
        return Content(safe(head) + "\n" + safe(f"      {cut(past.path, 44)}  {past.headline}"))
