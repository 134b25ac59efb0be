"""The gate log of a server under `gatescope record`: bounded, sampled, and what goes wrong with it
costs the record, never the server."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step
from core.recorder.gatescope_recorder.limits import VARIABLE, Limits
from core.recorder.gatescope_recorder.parts import LOG
from core.recorder.gatescope_recorder.plugin import FOLDER


def asked() -> tuple[Path, Limits] | None:
    """Where and how much to record, as the environment has it; None where it does not say."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    return Path(folder) / f"dp0_pp0{LOG}", Limits.decode(os.environ.get(VARIABLE) or "{}")


class SparedWriter(GateLogWriter):
    """Records one step in `header.sample`; stops for good where the log cannot be written."""

    def __init__(self, path: Path, header: Header, limits: Limits) -> None:
        self._is_on = True
        super().__init__(path, header, limits)

    def append(self, step: Step) -> None:
        if step.index % self.header.sample == 0:
            self._spared(super().append, step)

    def flush(self) -> None:
        self._spared(super().flush)

    def close(self) -> None:
        self._spared(super().close)

    def _spared(self, action: Callable[..., None], *args: Any) -> None:
        if not self._is_on:
            return
        try:
            action(*args)
        except OSError as error:
            self._is_on = False
            reason = f"{type(error).__name__}: {error}"
            print(f"gatescope recorder: disabled: {reason}", file=sys.stderr, flush=True)
            self.notes["disabled"] = reason
            with contextlib.suppress(OSError):
                self.write_totals()
