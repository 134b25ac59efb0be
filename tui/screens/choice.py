"""Choice: a question over the screen. Its first option is the harmless one, which enter and esc
choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets import option_list as lists

from tui.draw.text import safe


@dataclass(frozen=True, slots=True)
class Option:
    """`key` picks it at once; `esc` stands for going back."""

    key: str
    label: str
    help: str


class Choice(ModalScreen[str]):
    """Dismissed with the key of the option chosen. `interrupt`: what ctrl+c answers."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "answer('esc')"),
        Binding("ctrl+c", "interrupt", priority=True),
    ]

    def __init__(
        self, title: str, texts: Sequence[str], options: Sequence[Option], interrupt: str = "esc"
    ) -> None:
        super().__init__()
        self._title, self._texts, self._options, self._interrupt = title, texts, options, interrupt

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = Content(safe(self._title))
            for text in self._texts:
                yield Static(Content(safe(text)))
            rows = [
                Content.assemble((f" {o.key:<4}", "bold"), f" {o.label}: {safe(o.help)}")
                for o in self._options
            ]
            yield OptionList(
                *(lists.Option(row, id=o.key) for row, o in zip(rows, self._options, strict=True))
            )

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id or "esc")

    def on_key(self, event: events.Key) -> None:
        if event.key in {o.key for o in self._options}:
            event.stop()
            self.dismiss(event.key)

    def action_answer(self, key: str) -> None:
        self.dismiss(key)

    def action_interrupt(self) -> None:
        self.dismiss(self._interrupt)
