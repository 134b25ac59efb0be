"""Server-sent events: bytes in, data payloads out."""

from __future__ import annotations

MAX_LINE_BYTES = 1 << 22


class EventTooLong(Exception):
    """A line that does not end: the server is broken or hostile."""


class EventParser:
    """Cuts a byte stream into the payloads of its `data:` lines (https://html.spec.whatwg.org/#parsing-an-event-stream).

    Lines may end in LF, CRLF or CR, be split anywhere, and several events may come in one read. Data lines of one event
    are joined by a newline; comments and other fields are dropped.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes. EventTooLong where a line or an event passes 4 MiB."""
        buffer = self._rest + chunk
        # A CR at the very end may be half of a CRLF: keep it for the next read.
        held = b"\r" if buffer.endswith(b"\r") else b""
        lines = buffer[: len(buffer) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + held
        if len(self._rest) > MAX_LINE_BYTES:
            raise EventTooLong(f"a line of over {MAX_LINE_BYTES} bytes")
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> bytes | None:
        if not line:
            data, self._data = self._data, []
            return b"\n".join(data) if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            if sum(map(len, self._data)) > MAX_LINE_BYTES:
                raise EventTooLong(f"an event of over {MAX_LINE_BYTES} bytes")
        return None
