"""Server-sent events: bytes in, data payloads and errors out."""

from __future__ import annotations

from dataclasses import dataclass

MAX_EVENT_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"


class EventTooLong(Exception):
    """A line or an event is too long: the server is broken or hostile."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An event called "error", or a field of that name; `words`: its data, else its comment."""

    words: bytes
    is_event: bool


class EventParser:
    """Cuts a byte stream into the payloads of its events
    (https://html.spec.whatwg.org/#parsing-an-event-stream).

    Lines may end in LF, CRLF or CR and may be split anywhere; one read may hold several events. The
    data lines of an event are joined by newlines; comments and other fields are dropped, but for
    errors. `rest()` is the data of an event without the blank line that ends it.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the unfinished line
        self._held = 0
        self._data: list[bytes] = []
        self._size = 0
        self._is_error = False  # the event is called "error"
        self._comment = b""
        self._after_cr = False
        self._first = True

    @property
    def is_between(self) -> bool:
        """Whether the next byte begins an event."""
        begun = self._held or self._data or self._is_error or self._comment
        return not (begun or self._after_cr or self._first)

    @property
    def size(self) -> int:
        """Bytes of the event that is not complete yet."""
        return self._held + self._size

    def rest(self) -> bytes:
        """The data so far of the event that is not complete yet."""
        name, _, value = b"".join(self._pieces).partition(b":")
        held = [value.removeprefix(b" ")] if name == b"data" else []
        return b"\n".join([*self._data, *held])

    def feed(self, chunk: bytes) -> list[bytes | Failed]:
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

    def _line(self, line: bytes) -> bytes | Failed | None:
        if not line:
            if self._data or self._is_error:
                return self._event()
            self._comment = b""
            return None
        if line.startswith(b":"):
            self._comment = line
            return None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
            if self._size > MAX_EVENT_BYTES:
                raise EventTooLong(f"an event of over {MAX_EVENT_BYTES} bytes")
        elif name == b"event":
            self._is_error = value.strip() == b"error"
        elif name == b"error":
            return Failed(value.strip(), is_event=False)
        return None

    def _event(self) -> bytes | Failed:
        """What the blank line ends."""
        data, self._data, self._size = self._data, [], 0
        is_error, self._is_error = self._is_error, False
        comment, self._comment = self._comment, b""
        if is_error:
            return Failed(b"\n".join(data) or comment[1:].strip(), is_event=True)
        return b"\n".join(data)
