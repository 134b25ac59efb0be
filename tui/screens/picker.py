"""Picker: choose datasets to add to the queue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from tui.draw.text import number, safe
from tui.model.session import score_in


class _Filter(Input):
    async def on_key(self, event: events.Key) -> None:
        """A space marks."""
        if event.key == "space":
            event.stop()
            event.prevent_default()
            await self.run_action("screen.mark")


class Picker(ModalScreen[list[str]]):
    """Dismissed with the indices chosen; an empty list means back. A mark is text, so that it shows
    without colour."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+c", "leave", "back"),
        Binding("down", "move(1)"),
        Binding("up", "move(-1)"),
    ]

    def __init__(self, datasets: Mapping[str, Path]) -> None:
        super().__init__()
        self._datasets = datasets
        self._marked: set[str] = set()
        self._words = ""  # that the rows on screen match

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog tall") as box:
            box.border_title = "Add datasets"
            box.border_subtitle = "space  mark   enter  add   esc  back"
            yield Static("Each one runs once more at every backend.", markup=False)
            yield _Filter(placeholder="type to filter by index, name or score")
            yield OptionList(*self._options())

    def on_mount(self) -> None:
        self.query_one(OptionList).highlighted = 0

    def _options(self) -> list[Option]:
        rows = ((index, self._row(index)) for index in self._datasets)
        return [Option(row, id=index) for index, row in rows if self._words in row.plain.lower()]

    def _row(self, index: str) -> Content:
        """Marked or not, index, predicted score, file."""
        file = self._datasets[index]
        score = number(score_in(str(file)), 4)
        mark = "x" if index in self._marked else " "
        return Content(safe(f"[{mark}] {index}  {score:>6}  {file.name}"))

    def on_input_changed(self) -> None:
        self._narrowed()

    def _narrowed(self) -> OptionList:
        """The list as what is typed narrows it: a key may be ahead of the news of the text."""
        box, words = self.query_one(OptionList), self.query_one(_Filter).value.lower()
        if words != self._words:
            self._words = words
            box.clear_options()
            box.add_options(self._options())
            box.highlighted = 0 if box.option_count else None
        return box

    def action_move(self, by: int) -> None:
        box = self._narrowed()
        box.action_cursor_down() if by > 0 else box.action_cursor_up()

    def action_mark(self) -> None:
        box = self._narrowed()
        if (option := box.highlighted_option) and option.id:
            self._marked ^= {option.id}
            box.replace_option_prompt(option.id, self._row(option.id))

    def on_input_submitted(self) -> None:
        """The marked ones; if there are none, the one under the cursor."""
        option = self._narrowed().highlighted_option
        here = [option.id] if option and option.id else []
        self.dismiss(sorted(self._marked) or here)

    def action_leave(self) -> None:
        self.dismiss([])
