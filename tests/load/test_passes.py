from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import uvloop

from core.load import passes
from core.load.clock import ReceiveClock
from core.load.passes import PAUSE_NS, ReadPasses
from core.load.wire import PlainWire

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="sockets without kernel stamps are read by the loop"
)

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda scenario: runner.run(asyncio.wait_for(scenario, 10))


class Time:
    """Advances when set, and in sleep."""

    def __init__(self) -> None:
        self.at = 10**12
        self.slept: list[int] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds * 1e9))
        self.at += self.slept[-1]


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(passes, "now", lambda: made.at)
    monkeypatch.setattr(passes, "time", made)
    return made


@pytest.fixture
def pairs() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Makes connected sockets: ours, and the peer's."""
    with ExitStack() as opened:

        def pair() -> tuple[socket.socket, socket.socket]:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            return opened.enter_context(ours), opened.enter_context(theirs)

        yield pair


Pairs = Callable[[], tuple[socket.socket, socket.socket]]


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_one_pass_reads_every_socket_that_has_something(
    run: Run, time: Time, many_files: None, pairs: Pairs
) -> None:
    """More sockets than epoll reports at once by default."""

    async def scenario() -> None:
        reading, done = ReadPasses(asyncio.get_running_loop()), asyncio.Event()
        waiting: set[socket.socket] = set()

        def take(sock: socket.socket) -> None:
            waiting.remove(sock)
            reading.remove(sock)
            if not waiting:
                done.set()

        for _ in range(1100):
            ours, theirs = pairs()
            theirs.send(b"x")
            waiting.add(ours)
            reading.add(ours, partial(take, ours))
        await done.wait()
        assert time.slept == []  # a second pass would have waited

    run(scenario())


@pytest.mark.parametrize(
    ("elsewhere_ns", "slept"),
    [(0, [200_000] * 49), (150_000, [50_000] * 49), (200_000, []), (900_000, [])],
)
def test_a_pass_begins_a_pause_after_the_last_ended(
    run: Run, time: Time, pairs: Pairs, elsewhere_ns: int, slept: list[int]
) -> None:
    """50 passes over two sockets that always have something; between them the loop does something
    else."""

    async def scenario() -> None:
        loop, done, read = asyncio.get_running_loop(), asyncio.Event(), []
        reading = ReadPasses(loop)

        def pass_time() -> None:
            time.at += elsewhere_ns

        def take(sock: socket.socket) -> None:
            time.at += 7_000
            read.append(sock)
            if len(read) % 2 == 0:
                loop.call_soon(pass_time)
            if len(read) > 98:
                reading.remove(sock)
            if len(read) == 100:
                done.set()

        for _ in range(2):
            ours, theirs = pairs()
            theirs.send(b"x")
            reading.add(ours, partial(take, ours))
        await done.wait()
        assert {a is b for a, b in zip(read[::2], read[1::2], strict=True)} == {
            False
        }  # each once a pass
        assert time.slept == slept

    assert PAUSE_NS == 200_000
    run(scenario())


def test_a_socket_that_another_s_read_closed_is_not_read(
    run: Run, time: Time, pairs: Pairs
) -> None:
    async def scenario() -> None:
        reading, done = ReadPasses(asyncio.get_running_loop()), asyncio.Event()
        socks: list[socket.socket] = []
        read: list[int] = []

        def take(place: int) -> None:
            read.append(place)
            done.set()
            for sock in socks:
                reading.remove(sock)
                sock.close()

        for place in range(3):
            ours, theirs = pairs()
            theirs.send(b"x")
            socks.append(ours)
            reading.add(ours, partial(take, place))
        await done.wait()
        assert len(read) == 1

    run(scenario())


def test_a_read_that_fails_is_told_and_the_others_go_on(run: Run, time: Time, pairs: Pairs) -> None:
    async def scenario() -> None:
        loop, done, told, read = asyncio.get_running_loop(), asyncio.Event(), [], []
        loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        reading = ReadPasses(loop)

        def fail(number: int) -> None:
            raise OSError(f"disk {number}")

        def take(sock: socket.socket) -> None:
            read.append(len(told))
            if len(read) == 2:
                done.set()

        ours, theirs = [], []
        for _ in range(3):
            mine, other = pairs()
            other.send(b"x")
            ours.append(mine)
            theirs.append(other)
        reading.add(ours[0], lambda: fail(0))
        reading.add(ours[1], lambda: take(ours[1]))
        reading.add(ours[2], lambda: fail(2))
        await done.wait()
        assert told[:2] == ["disk 0", "disk 2"]
        assert len(read) == 2
        assert time.slept == [PAUSE_NS]
        for sock in ours:
            reading.remove(sock)

    run(scenario())


def test_nothing_is_held_once_the_last_socket_is_gone_and_it_begins_anew(
    run: Run, pairs: Pairs
) -> None:
    async def scenario() -> None:
        reading = ReadPasses(asyncio.get_running_loop())
        ours, theirs = pairs()
        before = open_files()
        for number in range(3):
            done = asyncio.Event()
            reading.add(ours, done.set)
            theirs.send(b"x")
            await done.wait()
            reading.remove(ours)
            assert open_files() == before, number

    run(scenario())


# --- with a wire ---


class Kept:
    """Keeps what comes."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.data: list[bytes] = []
        self.errors: list[OSError | None] = []
        self._then = then
        self.came = asyncio.Event()

    def received(self, data: bytes, at: int) -> None:
        self.data.append(data)
        self.came.set()
        self._then()

    def lost(self, error: OSError | None) -> None:
        self.errors.append(error)
        self.wire.close()
        self.came.set()

    def on(self, sock: socket.socket, reading: ReadPasses) -> PlainWire:
        self.wire = PlainWire(sock, ReceiveClock(), reading, self)
        return self.wire


def test_a_new_socket_under_the_number_of_one_closed_in_the_pass_gets_its_own_bytes(
    run: Run, pairs: Pairs
) -> None:
    async def scenario() -> None:
        reading = ReadPasses(asyncio.get_running_loop())
        (first, first_peer), (second, second_peer), (third, third_peer) = pairs(), pairs(), pairs()
        number = second.fileno()

        def replace() -> None:
            second_kept.wire.close()
            third_kept.on(socket.socket(fileno=os.dup2(third.fileno(), number)), reading)

        first_kept, second_kept, third_kept = Kept(replace), Kept(), Kept()
        first_kept.on(first, reading)
        second_kept.on(second, reading)
        first_peer.send(b"one")
        second_peer.send(b"two")
        await first_kept.came.wait()
        third_peer.send(b"three")
        await third_kept.came.wait()
        assert (first_kept.data, second_kept.data, third_kept.data) == ([b"one"], [], [b"three"])
        assert first_kept.errors == second_kept.errors == third_kept.errors == []
        first_kept.wire.close()
        third_kept.wire.close()

    run(scenario())


def test_a_reset_that_comes_together_with_data_is_told_after_it(run: Run) -> None:
    async def scenario() -> None:
        kept = Kept()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            ours = socket.create_connection(listening.getsockname())
            theirs, _ = listening.accept()
        ours.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.send(b"last words")
        theirs.close()
        kept.on(ours, ReadPasses(asyncio.get_running_loop()))
        while not kept.errors:
            kept.came.clear()
            await kept.came.wait()
        assert kept.data == [b"last words"]
        assert isinstance(kept.errors[0], ConnectionResetError)
        assert len(kept.errors) == 1

    run(scenario())
