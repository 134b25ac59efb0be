"""Picker: choose datasets to add to the queue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

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
    def check_consume_key(self, key: str, character: str | None) -> bool:
        """A space marks."""
        return key != "space" and super().check_consume_key(key, character)


class Picker(ModalScreen[list[str]]):
    """Dismissed with the indices chosen; an empty list means back. A mark is text, so that it shows
    without colour."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+c", "leave", "back", priority=True),
        Binding("enter", "choose", "add", priority=True),
        Binding("space", "mark", "mark", priority=True),
        Binding("down", "move(1)", priority=True),
        Binding("up", "move(-1)", priority=True),
    ]

    def __init__(self, datasets: Mapping[str, Path]) -> None:
        super().__init__()
        self._datasets = datasets
        self._marked: set[str] = set()

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog tall") as box:
            box.border_title = "Add datasets"
            box.border_subtitle = "space  mark   enter  add   esc  back"
            yield Static("Each one runs once more at every backend.", markup=False)
            yield _Filter(placeholder="type to filter by index, name or score")
            yield OptionList(*self._options(""))

    def on_mount(self) -> None:
        self.query_one(OptionList).highlighted = 0

    def _options(self, words: str) -> list[Option]:
        rows = ((index, self._row(index)) for index in self._datasets)
        return [Option(row, id=index) for index, row in rows if words.lower() in row.plain.lower()]

    def _row(self, index: str) -> Content:
        """Marked or not, index, predicted score, file."""
        file = self._datasets[index]
        score = number(score_in(str(file)), 4)
        mark = "x" if index in self._marked else " "
        return Content(safe(f"[{mark}] {index}  {score:>6}  {file.name}"))

    def on_input_changed(self, event: Input.Changed) -> None:
        box = self.query_one(OptionList)
        box.clear_options()
        box.add_options(self._options(event.value))
        box.highlighted = 0 if box.option_count else None

    def action_move(self, by: int) -> None:
        box = self.query_one(OptionList)
        box.action_cursor_down() if by > 0 else box.action_cursor_up()

    def action_mark(self) -> None:
        box = self.query_one(OptionList)
        if (option := box.highlighted_option) and option.id:
            self._marked ^= {option.id}
            box.replace_option_prompt(option.id, self._row(option.id))

    def action_choose(self) -> None:
        """The marked ones; if there are none, the one under the cursor."""
        option = self.query_one(OptionList).highlighted_option
        here = [option.id] if option and option.id else []
        self.dismiss(sorted(self._marked) or here)

    def action_leave(self) -> None:
        self.dismiss([])
