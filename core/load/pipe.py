"""Messages between a load worker and its parent: length-prefixed msgpack frames over two pipes."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import replace

import msgspec

from core.load.record import Progress, RequestRecord, WorkerHealth

LENGTH_BYTES = 4


class Row(msgspec.Struct, frozen=True):
    """One request: due `due_ns` after the start."""

    index: int
    prompt_id: str
    request_id: str
    due_ns: int
    body: bytes


class Job(msgspec.Struct, frozen=True, tag=True):
    """A worker's share: rows in the order of their due times. `closed_loop`: a row is due when a
    slot is free."""

    url: str
    headers: list[tuple[str, str]]
    rows: list[Row]
    concurrency: int
    closed_loop: bool
    connections: int  # to open before the start
    stall_timeout_s: float
    max_tokens: int  # requested per answer
    max_answer_bytes: int


class Go(msgspec.Struct, frozen=True, tag=True):
    """Start; `t0_ns` is perf_counter time, which all processes of a machine share."""

    t0_ns: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Close every socket, report what there is, and end."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The requests are built and the connections open."""


class Advanced(msgspec.Struct, frozen=True, tag=True):
    """The worker's progress: once a second, and at its first token and first gap."""

    progress: Progress


class Done(msgspec.Struct, frozen=True, tag=True):
    """A request has ended. Its stamps and event tokens are sent as 64-bit integers: 16 MB per
    million tokens."""

    bare: RequestRecord  # without stamps and event tokens
    stamps: bytes
    tokens: bytes

    @property
    def record(self) -> RequestRecord:
        """The whole record."""
        return replace(
            self.bare, stamps_ns=_numbers(self.stamps), event_tokens=_numbers(self.tokens)
        )


def _numbers(data: bytes) -> array[int]:
    numbers = array("q")
    numbers.frombytes(data)
    return numbers


class Finished(msgspec.Struct, frozen=True, tag=True):
    """Every request has ended; the worker's last message."""

    health: WorkerHealth


Down = Job | Go | Stop
Up = Ready | Advanced | Done | Finished

decode_down: msgspec.msgpack.Decoder[Down] = msgspec.msgpack.Decoder(Down)
decode_up: msgspec.msgpack.Decoder[Up] = msgspec.msgpack.Decoder(Up)


def frame(message: Down | Up) -> bytes:
    """The message as bytes, with its length in front."""
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


async def read_frame(pipe: asyncio.StreamReader) -> bytes | None:
    """One frame's bytes; None at the end of the pipe."""
    try:
        size = int.from_bytes(await pipe.readexactly(LENGTH_BYTES), "big")
        return await pipe.readexactly(size)
    except asyncio.IncompleteReadError:
        return None
