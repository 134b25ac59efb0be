"""Help: every key, from the bindings themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.widgets.pane import Pane
from tui.widgets.plots import Plots


class Help(ModalScreen[None]):
    """Scrolls; any of its keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,ctrl+c", "dismiss", "close", priority=True),
        Binding("j", "down"),
        Binding("k", "up"),
    ]

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog tall") as box:
            box.border_title = "Keys"
            box.border_subtitle = "esc closes"
            table = Table.grid(padding=(0, 2))
            for key, text in keys([*self.app.BINDINGS, *Pane.BINDINGS, *Plots.BINDINGS]):
                table.add_row(Text(key, "bold"), Text(text))
            yield Static(table)

    def action_down(self) -> None:
        self.query_one(VerticalScroll).scroll_down()

    def action_up(self) -> None:
        self.query_one(VerticalScroll).scroll_up()


def keys(bindings: list[BindingType]) -> Iterator[tuple[str, str]]:
    """(keys as written, what they do), one per action."""
    written: dict[str, list[str]] = {}
    for binding in bindings:
        assert isinstance(binding, Binding)  # ours are all written out
        for key in [binding.key_display] if binding.key_display else binding.key.split(","):
            known = written.setdefault(binding.tooltip, [])
            if key not in known:
                known.append(key)
    return ((" ".join(keys), text) for text, keys in written.items())
