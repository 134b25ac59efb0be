"""ConfigScreen: what would run, whether the config is right, and its text; edited in $EDITOR and
read again."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections import Counter
from typing import ClassVar

from textual.app import SuspendNotSupported
from textual.binding import Binding, BindingType

from core.errors import GatescopeError
from tui.draw.text import Span
from tui.draw.text import runs as counted
from tui.model import session as sessions
from tui.model.session import Session
from tui.screens.reading import Reading


class ConfigScreen(Reading):
    """An edit acts on what is not started: a run directory keeps the config that it began with."""

    HINTS = (("E", "edit"), ("↑ ↓", "scroll"), ("y", "copy"), ("esc", "back"))
    BINDINGS: ClassVar[list[BindingType]] = [Binding("E", "edit", "edit")]

    def __init__(self, session: Session) -> None:
        self._session = session
        self._file = session.invocation.config_path
        super().__init__(f"config {self._file}", self._look_at_it, str(self._file.absolute()))

    def _look_at_it(self) -> list[Span]:
        try:
            text: list[Span] = [(row, "") for row in self._file.read_text().splitlines()]
        except OSError as error:
            text = [(f"{self._file}: cannot be read: {error.strerror}", "bad")]
        return [*self._checked(), ("", ""), *text]

    def _checked(self) -> list[Span]:
        """What would run, or every mistake."""
        try:
            planned = sessions.planned(self._session.invocation)
        except GatescopeError as error:
            return [(f"! {row}", "bad") for row in str(error).splitlines()]
        each = Counter(run.run.backend for run in planned.runs.values())
        said = ", ".join(f"{name} {count}" for name, count in each.items())
        kept = f"{self._session.run_dir} keeps the config that it was started with"
        started: list[Span] = [(kept, "dim")] if self._session.run_dir else []
        return [(f"✓ no mistakes; {counted(len(planned.runs))}: {said}", "ok"), *started]

    def action_edit(self) -> None:
        editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
        try:
            with self.app.suspend():
                subprocess.run([*editor, self._file], check=False)
        except (SuspendNotSupported, OSError) as error:
            self._said = f"{editor[0]} did not start: {error}; set EDITOR"
        if self._session.run_dir is None:
            self.run_worker(self._session.open, thread=True)
        self.read_again()
