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
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tui.draw.text import safe


class Picker(ModalScreen[list[str]]):
    """Dismissed with the indices chosen; an empty list means back. A mark is text, so that it shows
    without colour."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+c", "leave", "back", priority=True),
        Binding("enter", "choose", "add", priority=True),
        Binding("space", "mark", "mark", priority=True),
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
            yield OptionList(*(Option(self._row(index), id=index) for index in self._datasets))

    def _row(self, index: str) -> Content:
        return Content(
            safe(f"[{'x' if index in self._marked else ' '}] {index}  {self._datasets[index].name}")
        )

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
