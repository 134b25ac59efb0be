"""Ending: shown from 'stop everything' until the engine and its servers have stopped."""

from __future__ import annotations

import time
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from core.experiment import control
from core.experiment.control import ControlError
from tui.model.session import Session

LOOK_S = 0.2


class Ending(ModalScreen[None]):
    """Sends Stop, waits for the end, then leaves the App."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "leave", "leave now", tooltip="Do not wait; the engine stops by itself")
    ]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = "Stopping everything"
            yield Static("Stopping the run and its servers …", id="ending", markup=False)
            yield Static("d  leave now; the engine stops by itself", markup=False)

    def on_mount(self) -> None:
        self.run_worker(self._stop, thread=True)

    def _stop(self) -> None:
        try:
            self._session.send(control.Stop())
        except ControlError as error:
            if self._session.is_live():
                self.app.call_from_thread(self._refused, str(error))
                return
        while self._session.is_live():
            time.sleep(LOOK_S)
        self.app.call_from_thread(
            self.app.exit, 0, message=f"stopped; the results are in {self._session.run_dir}"
        )

    def _refused(self, reason: str) -> None:
        self.query_one("#ending", Static).update(f"! not stopped: {reason}")

    def action_leave(self) -> None:
        self.app.exit(0, message=f"stopping; the results are in {self._session.run_dir}")
