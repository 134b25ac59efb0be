from __future__ import annotations

import socket
import sys
import time

import pytest

from core.load.clock import (
    ANCILLARY_BYTES,
    SO_TIMESTAMPNS,
    TIMESPEC,
    ReceiveClock,
    now,
    request_stamps,
)


@pytest.mark.skipif(sys.platform != "linux", reason="kernel stamps are read on Linux only")
def test_a_stamp_says_when_bytes_came_and_not_when_they_were_read() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as here,
    ):
        there, _ = listening.accept()
        with there:
            clock = ReceiveClock()
            assert request_stamps(here)
            for _ in range(50):  # the kernel turns stamping on a moment after it is first asked for
                before = now()
                there.sendall(b"x")
                after = now()
                time.sleep(0.02)  # a busy client
                _, ancillary, _, _ = here.recvmsg(64, ANCILLARY_BYTES)
                if ancillary:
                    break
            at = clock.arrival(ancillary)
    assert (
        before - 1_000_000 <= at <= after + 10_000_000
    )  # a wide net: well under the 20 ms of the delay
    assert clock.stamped_reads == 1


def test_a_stamp_is_never_later_than_its_read() -> None:
    clock = ReceiveClock()
    tomorrow = int(time.time()) + 86400
    before = now()
    assert (
        before
        <= clock.arrival([(socket.SOL_SOCKET, SO_TIMESTAMPNS, TIMESPEC.pack(tomorrow, 0))])
        <= now()
    )


def test_a_jump_of_the_wall_clock_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ReceiveClock()
    clock.sample()
    assert clock.steps == 0
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 5_000_000_000)
    clock.sample()
    assert clock.steps == 1
