"""Picker: choose data sets to add to the queue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import SelectionList, Static
from textual.widgets.selection_list import Selection

from tui.text import safe


class Picker(ModalScreen[list[str]]):
    """Dismissed with the indices chosen, none where it was left."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+c", "leave", "back", priority=True),
        Binding("enter", "choose", "add", priority=True),
    ]

    def __init__(self, datasets: Mapping[str, Path]) -> None:
        super().__init__()
        self._datasets = datasets

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog tall") as box:
            box.border_title = "Add data sets"
            box.border_subtitle = "space marks  enter adds  esc goes back"
            yield Static("Each is run once more at every backend.", markup=False)
            yield SelectionList[str](
                *(Selection(Content(safe(f"{index}  {path.name}")), index) for index, path in self._datasets.items())
            )

    def action_choose(self) -> None:
        """The marked ones; where none is, the one under the cursor."""
        box = self.query_one(SelectionList)
        chosen = sorted(box.selected)
        if not chosen and box.highlighted is not None:
            chosen = [list(self._datasets)[box.highlighted]]
        self.dismiss(chosen)

    def action_leave(self) -> None:
        self.dismiss([])
