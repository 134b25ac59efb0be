"""Server-sent events: bytes in, data payloads out."""

from __future__ import annotations

MAX_EVENT_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"


class EventTooLong(Exception):
    """A line or an event is too long: the server is broken or hostile."""


class EventParser:
    """Cuts a byte stream into the payloads of its events
    (https://html.spec.whatwg.org/#parsing-an-event-stream).

    Lines may end in LF, CRLF or CR and may be split anywhere; one read may hold several events. The
    data lines of an event are joined by newlines; comments and other fields are dropped, and so is
    an event without the blank line that ends it.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the unfinished line
        self._held = 0
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._first = True

    @property
    def is_between(self) -> bool:
        """Whether the next byte begins an event."""
        return not (self._held or self._data or self._after_cr or self._first)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes. EventTooLong if a line or an event exceeds 1 MiB."""
        return [event for line in self._lines(chunk) if (event := self._line(line)) is not None]

    def _lines(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes; the rest of it waits for the next chunk."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = chunk.split(b"\n")
        if lines and self._pieces:
            lines[0] = b"".join(self._pieces) + lines[0]
            self._pieces, self._held = [], 0
        if rest:
            self._pieces.append(rest)
            self._held += len(rest)
            if self._held > MAX_EVENT_BYTES:
                raise EventTooLong(f"a line of over {MAX_EVENT_BYTES} bytes")
        if lines and self._first:
            lines[0] = lines[0].removeprefix(BOM)
            self._first = False
        return lines

    def _line(self, line: bytes) -> bytes | None:
        if not line:
            data, self._data, self._size = self._data, [], 0
            return b"\n".join(data) if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
            if self._size > MAX_EVENT_BYTES:
                raise EventTooLong(f"an event of over {MAX_EVENT_BYTES} bytes")
        return None
