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

if TYPE_CHECKING:
    from core.rundir.past import Past

ROLES = {"running": "▶", "finished": "✓", "unfinished": "!"}


class PastRuns(ModalScreen[Path | None]):
    """Dismissed with the run directory chosen; None means back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,ctrl+c", "leave", "back", priority=True),
        Binding("j", "down"),
        Binding("k", "up"),
        Binding("space", "mark", priority=True),
        Binding("c", "compare"),
    ]

    def __init__(self, found: Sequence[Past], folder: Path) -> None:
        super().__init__()
        self._found, self._folder = {past.path: past for past in found}, folder
        self._marked = ""  # what another one is compared with

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog tall") as box:
            box.border_title = Content(safe(f"Runs in {self._folder}"))
            box.border_subtitle = (
                "enter  open   space  mark   c  compare with the marked   esc  back"
            )
            if not self._found:
                yield Static("No run directory here yet.", markup=False)
            yield OptionList(*(Option(self._row(path), id=path) for path in self._found))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(Path(event.option.id or "."))

    def action_down(self) -> None:
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        self.query_one(OptionList).action_cursor_up()

    def action_mark(self) -> None:
        """Mark the one under the cursor, in place of another; or take its mark away."""
        self._marked = "" if self._marked == self._here else self._here
        for path in self._found:
            self.query_one(OptionList).replace_option_prompt(path, self._row(path))

    def action_compare(self) -> None:
        from tui.model import details
        from tui.screens.reading import Reading

        if not self._marked or self._marked == self._here:
            box = self.query_one(".dialog", Vertical)
            box.border_subtitle = "space  mark one first, then  c  on another   esc  back"
            return
        title = f"{self._here} against {self._marked}"
        read = partial(details.compared, Path(self._marked), Path(self._here))
        self.app.push_screen(Reading(title, read))

    def action_leave(self) -> None:
        self.dismiss(None)

    @property
    def _here(self) -> str:
        option = self.query_one(OptionList).highlighted_option
        return (option.id or "") if option else ""

    def _row(self, path: str) -> Content:
        return _row(self._found[path], is_marked=path == self._marked)


def _row(past: Past, *, is_marked: bool) -> Content:
    """Two lines: when and which; how far it came, and what it found."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(past.started_at))
    failed = f", {past.failed} failed" if past.failed else ""
    ended = f"{past.done} of {past.runs} done{failed}"
    mark = "*" if is_marked else " "
    head = f"{mark}{ROLES[past.state]} {when}  {past.state:<10}  {ended}  {past.engine}"
    return Content(
        safe(head) + "\n" + safe(f"    {cut(Path(past.path).name, 44)}  {past.headline}")
    )
