"""Prompt: one labelled line to type into, shown only while it is open."""

from __future__ import annotations

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Input, Static


class _Entry(Input):
    def allow_focus(self) -> bool:
        """A hidden one does not take the keys."""
        return isinstance(self.parent, Prompt) and self.parent.is_open

    async def on_key(self, event: events.Key) -> None:
        """Enter takes what was typed before it, also where more keys came with it."""
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            await self.action_submit()


class Prompt(Horizontal):
    """`label` says what is typed, `placeholder` what the keys do."""

    def __init__(self, label: str, placeholder: str) -> None:
        super().__init__()
        self._label, self._placeholder = label, placeholder

    def compose(self) -> ComposeResult:
        yield Static(Content(f" {self._label} "))
        yield _Entry(placeholder=self._placeholder)

    @property
    def is_open(self) -> bool:
        return self.has_class("-open")

    def open(self, text: str = "", label: str = "") -> None:
        entry = self.query_one(_Entry)
        if label:
            self.query_one(Static).update(Content(f" {label} "))
        self.add_class("-open")
        entry.value = text
        self.screen.set_focus(entry)  # now: the next key is its own
        entry.focus()  # and again behind a focus that is on its way to a pane

    def close(self) -> None:
        self.remove_class("-open")
