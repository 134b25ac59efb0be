"""The lines that a batch prints while it runs, and the bar under them."""

from __future__ import annotations

import os
import sys
import time

from core import terminal
from core.experiment import events, pace, state
from core.experiment.events import AnyEvent
from core.experiment.narrate import sentence
from core.terminal import printable, tell

HEARTBEAT_S = 30.0


class Lines:
    """Prints events on stderr, one line each; with `json`, also every event as a JSON line on
    stdout."""

    def __init__(self, *, json: bool, past: state.Snapshot) -> None:
        self._json, self._state = json, past
        self._told_at = time.monotonic()

    def __call__(self, event: AnyEvent) -> None:
        self._state = state.reduce(self._state, event)
        if self._json:
            self._print(event)
        line = sentence(event, self._state) or self._heartbeat()
        if line:
            tell(printable(line))
            self._told_at = time.monotonic()
        if line or isinstance(event, events.RunStarted | events.Sampled):
            self._show_bar(event.at)

    def _print(self, event: AnyEvent) -> None:
        """If stdout can no longer be written, the runs continue: the journal has every event."""
        try:
            sys.stdout.write(events.encode(event).decode() + "\n")
            sys.stdout.flush()
        except OSError as error:
            self._json = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            tell(f"! stdout: {error.strerror}: further events are in events.jsonl only")

    def _heartbeat(self) -> str | None:
        """A sign of life in a log file when a run or a start takes long."""
        live = self._state.live
        is_due = time.monotonic() - self._told_at >= HEARTBEAT_S
        if live is None or not is_due or terminal.shows_bars():
            return None
        return f"▶ {live.run}: {live.finished} of {live.requests} requests"

    def _show_bar(self, now: float) -> None:
        """On a terminal: the run in progress, its tokens, and the time until all runs are done."""
        seen, live = self._state, self._state.live
        if live is None:
            return
        last = next(iter(pace.of_run(seen, live.run)[-1:]), None)
        done, due = pace.tokens(live, last)
        of = f"{live.finished} of {live.requests} requests"
        tokens = f"{done:,} tokens, {of}" if due is None else f"{done:,} of {due:,} tokens"
        number = len(seen.runs) - seen.count("queued")
        left = pace.left_s(seen, now)
        eta = "" if left is None else f"  ETA {terminal.clock(left)}"
        tail = f"{tokens}  run {number} of {len(seen.runs)}{eta}"
        terminal.bar(f"▶ {live.run}", pace.share(live, last), tail)
