"""Which signals end a command."""

from __future__ import annotations

import signal

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ending() -> list[signal.Signals]:
    """Those that end us. One that we were started to ignore (by nohup, or by `&` in a script) stays
    ignored: who started us wants us to outlive it."""
    return [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
