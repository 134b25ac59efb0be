"""A streamed answer: which events are tokens, when they arrived, how many tokens they carried."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable
from itertools import compress, pairwise

from core.load import payload
from core.load.payload import FAILED_REASONS, MAX_ERROR_TEXT, NOT_JSON, Event, decode_usual
from core.load.sse import EventParser, EventTooLong, Failed

MORE_THAN_ASKED = 2
"""An answer with more than so many times the requested tokens is an error: else a server could
report any rate."""
DONE = b"[DONE]"
DONE_BYTES = 64  # a line of [DONE] is shorter


class TokenStream:
    """Takes the stamped bytes of one answer. Never raises: `error` holds the first error.

    With `continuous_usage_stats` every event says how many tokens there are so far: an event whose
    count rises is a token event, whether or not it has text. Without counts an event with content
    is one token, and a final usage says how many there were. The answer ends with [DONE], or with a
    finish_reason and usage; `on_end` is called then, and at an error.
    """

    __slots__ = (
        "_at",
        "_counted",
        "_events_at_end",
        "_has_counts",
        "_hidden",
        "_is_between",
        "_is_single",
        "_max_tokens",
        "_parser",
        "_several",
        "_stopped",
        "completion_tokens",
        "error",
        "finished",
        "on_end",
        "prompt_tokens",
        "stamps",
        "texts",
    )

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._parser = EventParser()
        self._at = 0  # ns: when the parser last got bytes
        self._is_between = True  # the next byte starts an event
        self._has_counts = True  # no content came yet without a count of tokens
        self._is_single = True  # one choice; of several, no count and no end is that of all
        self._counted = 0  # tokens of the events
        self._hidden = 0  # those of events without text
        self.stamps = array("q")
        self._several: dict[int, int] = {}  # tokens of the events that carried more than one
        self.texts: list[str] = []
        self.prompt_tokens: int | None = None  # by usage
        self.completion_tokens = 0  # by usage; 0 if it does not say
        self._stopped = False  # a finish_reason came
        self.finished = False
        self._events_at_end = 0
        self.error = ""
        self.on_end: Callable[[], None] | None = None

    def feed(self, chunk: bytes, at: int) -> None:
        """Bytes that arrived at `at` (ns)."""
        if self._is_between and chunk.startswith(b"data: {") and chunk.endswith(b"}\n\n"):
            # Whole events, as servers send them. With anything else between them it is not JSON.
            pieces = chunk[6:-2].split(b"\n\ndata: ")
            try:
                events = [*map(decode_usual, pieces)]
            except NOT_JSON:
                pass
            else:
                for event in events:
                    if event.choices:
                        self._take(event, at)
                    else:
                        self._take_bare(event, next(compress(pieces, (e is event for e in events))))
                return
        self._parse(chunk, at)

    def _parse(self, chunk: bytes, at: int) -> None:
        if self.error:  # what follows is useless, and may never end
            return
        self._at = at
        try:
            for event in self._parser.feed(chunk):
                self._take_payload(event, at)
        except EventTooLong as error:
            self._fail(f"{type(error).__name__}: {error}")
        # Some servers end with [DONE] and one newline, or none.
        if self._parser.size < DONE_BYTES and self._parser.rest().strip() == DONE:
            self._end()
        self._is_between = self._parser.is_between

    def _take_payload(self, data: bytes | Failed, at: int) -> None:
        if isinstance(data, Failed):
            silent = "an event called error, without a word" if data.is_event else ""
            self._fail_if(payload.event_error(data.words) or silent)
        elif data.strip() == DONE:
            self._end()
        elif data.strip():
            try:
                self._take_any(data, at)
            except NOT_JSON as error:
                self._fail(f"not the expected JSON: {error}")

    def _take_rest(self) -> None:
        """An event without the blank line that ends it, if it is whole."""
        with contextlib.suppress(*NOT_JSON):
            self._take_any(self._parser.rest(), self._at)

    def _take_any(self, data: bytes, at: int) -> None:
        """An event of any shape. One of NOT_JSON if it has none."""
        event = payload.decode(data)
        if event is not None and event.choices:
            self._take(event, at)
        elif event is not None:
            self._take_bare(event, data)

    def _take(self, event: Event, at: int) -> None:
        """An event with choices. Every token comes by here, so it calls little."""
        if self.error:
            return
        choice, usage, used = event.choices[0], event.usage, 0
        if usage is not None:
            used = usage.completion_tokens or 0
            if used > self.completion_tokens:
                self.completion_tokens = used
            self.prompt_tokens = usage.prompt_tokens or self.prompt_tokens
        if event.error:
            self._fail_if(payload.words(event.error))
        if choice.index:
            self._is_single = self._has_counts = False
        text = choice.text or ((delta := choice.delta) and delta.text)
        if used and self._has_counts:
            if used > self._counted:
                if used > self._counted + 1:
                    self._several[len(self.stamps)] = used - self._counted
                if not text:
                    self._hidden += used - self._counted
                self._counted = used
                self.stamps.append(at)
        elif text or (choice.delta and choice.delta.has_more):
            self._has_counts = False
            self._counted += 1
            self.stamps.append(at)
            if not text:
                self._hidden += 1
        if text:
            self.texts.append(text)
        if choice.finish_reason:
            self._stopped = True
            if choice.finish_reason in FAILED_REASONS:
                self._fail_if(f"finish_reason {choice.finish_reason}")
            if used and self._is_single:
                self._end()

    def _take_bare(self, event: Event, data: bytes) -> None:
        """An event without choices: usage, an error, or nothing that is of use."""
        if self.error:
            return
        used, usage = 0, event.usage
        if usage is not None:
            used = usage.completion_tokens or 0
            self.completion_tokens = max(used, self.completion_tokens)
            self.prompt_tokens = usage.prompt_tokens or self.prompt_tokens
        self._fail_if(payload.words(event.error) or payload.flat_error(data))
        if self._stopped and used and self._is_single:
            self._end()

    @property
    def received(self) -> int:
        """Number of tokens so far."""
        return self._counted

    def gaps(self, first: int) -> list[int]:
        """Nanoseconds per token before each event, from event `first` (1 or later) on."""
        return [
            (after - before) // self._several.get(place, 1)
            for place, (before, after) in enumerate(pairwise(self.stamps[first - 1 :]), first)
        ]

    @property
    def output_tokens(self) -> int:
        """Number of tokens by usage, else by the events."""
        return self.completion_tokens or self._counted

    @property
    def visible_tokens(self) -> int | None:
        """Number of tokens in events with text; None if not all tokens were seen in an event."""
        if self.completion_tokens > self._counted:
            return None
        return self._counted - self._hidden

    def event_tokens(self) -> array[int]:
        """Number of tokens in each event."""
        tokens = array("q", [1]) * len(self.stamps)
        for place, count in self._several.items():
            tokens[place] = count
        return tokens

    def closing_error(self, cut: str = "") -> str:
        """What is wrong with the answer, now that it has ended; "" if nothing. `cut`: how its
        connection broke, if it did."""
        if not (cut or self.error or self.finished):
            self._take_rest()
        if self.error:
            return self.error
        if not self.finished and (cut or not self._stopped):
            return cut or "stream cut: the server closed it before [DONE]"
        if not self.stamps:
            return "empty stream: the server ended it without a token"
        if self.finished and len(self.stamps) != self._events_at_end:
            return "tokens after the end: the server went on after [DONE]"
        return self.more_than_asked()

    def more_than_asked(self) -> str:
        """What is wrong with the number of tokens so far; "" if nothing."""
        tokens = max(self._counted, self.completion_tokens)
        if tokens <= MORE_THAN_ASKED * self._max_tokens:
            return ""
        return f"wrong usage: {tokens} tokens, {self._max_tokens} requested"

    def _end(self) -> None:
        if not self.finished:
            self._events_at_end = len(self.stamps)
            self.finished = True
            if self.on_end:
                self.on_end()

    def _fail_if(self, said: str) -> None:
        if said:
            self._fail(f"server error: {said}")

    def _fail(self, error: str) -> None:
        if not self.error:
            self.error = error[:MAX_ERROR_TEXT].encode(errors="replace").decode()
            if self.on_end:
                self.on_end()
