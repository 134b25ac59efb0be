"""Prompt: one line to type into, shown only while it is open."""

from __future__ import annotations

from textual.widgets import Input


class Prompt(Input):
    @property
    def is_open(self) -> bool:
        return self.has_class("-open")

    def open(self, text: str = "") -> None:
        self.value = text
        self.add_class("-open")
        self.focus()

    def close(self) -> None:
        self.remove_class("-open")
