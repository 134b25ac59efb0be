"""A streamed answer: which events are tokens, when they arrived, how many tokens they carried."""

from __future__ import annotations

from array import array
from typing import Annotated, Any

import msgspec

from core.files import NOT_JSON
from core.load.sse import EventParser, EventTooLong

MAX_ERROR_TEXT = 300
MORE_THAN_ASKED = 2
"""An answer with more than so many times the requested tokens is an error: else a server could
report any rate."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Count | None = 0
    completion_tokens: Count | None = 0


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's newer name


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    delta: _Delta | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class TokenStream:
    """Takes the stamped bytes of one answer. Never raises: `error` holds the first error.

    Empty events and chat's role event are not tokens: the tokens of an empty event count for the
    next event with content. Reasoning text is content. With `continuous_usage_stats` every event
    says how many tokens there are so far. Without it an event is one token, unless the final usage
    shows that events carried at least two each: then the total is spread evenly over them.
    """

    __slots__ = (
        "_counted",
        "_events_at_end",
        "_is_between",
        "_max_tokens",
        "_parser",
        "_several",
        "completion_tokens",
        "error",
        "finished",
        "prompt_tokens",
        "stamps",
        "texts",
    )

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._parser = EventParser()
        self._is_between = True  # the next byte starts an event
        self._counted = 0  # tokens, by the usage of the last token event
        self.stamps = array("q")
        self._several: dict[int, int] = {}  # tokens of the events that carried more than one
        self.texts: list[str] = []
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.finished = False
        self._events_at_end = 0
        self.error = ""

    def feed(self, chunk: bytes, at: int) -> None:
        """Bytes that arrived at `at` (ns)."""
        if self._is_between and chunk.startswith(b"data: {") and chunk.endswith(b"}\n\n"):
            # Whole events, as servers send them. With anything else between them it is not JSON.
            try:
                for event in [*map(_decode, chunk[6:-2].split(b"\n\ndata: "))]:
                    self._take(event, at)
                return
            except NOT_JSON:
                pass
        self._parse(chunk, at)

    def _parse(self, chunk: bytes, at: int) -> None:
        if self.error:  # what follows is useless, and may never end
            return
        try:
            for payload in self._parser.feed(chunk):
                if payload == b"[DONE]":
                    self._events_at_end = self._events_at_end if self.finished else len(self.stamps)
                    self.finished = True
                elif payload:
                    self._take(_decode(payload), at)
        except EventTooLong as error:
            self._fail(f"{type(error).__name__}: {error}")
        except NOT_JSON as error:
            self._fail(f"not the expected JSON: {error}")
        self._is_between = self._parser.is_between

    def _take(self, event: _Event, at: int) -> None:
        if self.error:
            return
        if event.error is not None:
            self._fail(f"server error: {str(event.error)[:MAX_ERROR_TEXT]}")
        used, usage = 0, event.usage
        if usage is not None:
            self.prompt_tokens = usage.prompt_tokens or self.prompt_tokens
            used = usage.completion_tokens or 0
            self.completion_tokens = used or self.completion_tokens
        choices = event.choices
        if choices and (text := choices[0].text or _said(choices[0].delta)):
            if used:
                if used > self._counted + 1:
                    self._several[len(self.stamps)] = used - self._counted
                self._counted = used
            self.stamps.append(at)
            self.texts.append(text)

    @property
    def received(self) -> int:
        """Number of tokens so far."""
        return len(self.stamps) - len(self._several) + sum(self._several.values())

    def event_tokens(self) -> array[int]:
        """Number of tokens in each event."""
        events, total = len(self.stamps), self.completion_tokens
        if not self._counted and events and total >= 2 * events:
            return array(
                "q", ((i + 1) * total // events - i * total // events for i in range(events))
            )
        tokens = array("q", [1]) * events
        for place, count in self._several.items():
            tokens[place] = count
        return tokens

    def closing_error(self) -> str:
        """What is wrong with the answer, now that it has ended; "" if nothing."""
        if self.error:
            return self.error
        if not self.finished:
            return "stream cut: the server closed it before [DONE]"
        if not self.stamps:
            return "empty stream: the server ended it without a token"
        if len(self.stamps) != self._events_at_end:
            return "tokens after the end: the server went on after [DONE]"
        return self.more_than_asked()

    def more_than_asked(self) -> str:
        """What is wrong with the number of tokens so far; "" if nothing."""
        tokens = max(self.received, self.completion_tokens)
        if tokens <= MORE_THAN_ASKED * self._max_tokens:
            return ""
        return f"wrong usage: {tokens} tokens, {self._max_tokens} requested"

    def _fail(self, error: str) -> None:
        self.error = self.error or error


def _said(delta: _Delta | None) -> str | None:
    if delta is None:
        return None
    return delta.content or delta.reasoning_content or delta.reasoning
