"""Kernel receive timestamps, "stamps": when bytes arrived here, however late they are read.

Linux only (SO_TIMESTAMPNS, socket(7)). The kernel stamps each segment in CLOCK_REALTIME;
`ReceiveClock` maps that to perf_counter. Segments that queue up are merged under the last one's
stamp, so events that are read together share it. Smaller reads do not recover the others (tried on
loopback: four segments 5 ms apart, read 100 bytes at a time).
"""

from __future__ import annotations

import socket
import struct
import sys
import time

now = time.perf_counter_ns
SO_TIMESTAMPNS = 35
TIMESPEC = struct.Struct("@ll")
ANCILLARY_BYTES = socket.CMSG_SPACE(TIMESPEC.size) if sys.platform != "win32" else 0
STEP_NS = 1_000_000

_timespec = TIMESPEC.unpack


def request_stamps(sock: socket.socket) -> bool:
    """Ask the kernel to stamp what `sock` receives; false if it cannot."""
    if sys.platform != "linux":
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


class ReceiveClock:
    """Maps CLOCK_REALTIME to perf_counter.

    Call `sample` throughout the run: the wall clock is slewed, and may be set. Counts reads, reads
    with a kernel stamp, and jumps of the wall clock of over a millisecond.
    """

    def __init__(self) -> None:
        self.reads = self.stamped_reads = self.steps = 0
        self.offset_ns = self._offset()

    def sample(self) -> None:
        """Measure the offset again."""
        offset = self._offset()
        if abs(offset - self.offset_ns) > STEP_NS:
            self.steps += 1
        self.offset_ns = offset

    def arrival(self, ancillary: list[tuple[int, int, bytes]]) -> int:
        """When the bytes just read arrived, in perf_counter ns: the kernel's stamp if `recvmsg`
        returned one, else now."""
        read_at = now()
        self.reads += 1
        if not ancillary:
            return read_at
        self.stamped_reads += 1
        seconds, nanoseconds = _timespec(ancillary[0][2])
        at: int = seconds * 1_000_000_000 + nanoseconds + self.offset_ns
        return at if at < read_at else read_at

    @staticmethod
    def _offset() -> int:
        """perf_counter - CLOCK_REALTIME, from the narrowest of a few bracketed readings."""
        readings = []
        for _ in range(5):
            before, wall, after = now(), time.time_ns(), now()
            readings.append((after - before, (before + after) // 2 - wall))
        return min(readings)[1]
