"""The bytes of a gate log, and the writer that every engine uses.

A gate log is append-only: 8 magic bytes, a length-prefixed JSON header, then blocks. A block holds
up to 256 engine steps as columns, compressed, with a CRC; a file cut anywhere is readable up to its
last whole block. A log may go on in further files (`parts`). All integers are little-endian. Layout
of a block:

    u32 BLOCK_MAGIC | u32 steps | u32 raw bytes | u32 compressed bytes
    u32 crc32 of the compressed bytes | u32 codec
    payload = u32 segment bytes | JSON list of segment labels
              int64 columns, each [steps]: COLUMNS in order
              int64 [labels, steps]: tokens of each segment
              counts, expert-major [experts, layers, steps], little-endian, split into byte planes

This module runs inside vLLM's workers too: standard library and NumPy only (zstandard if it is
installed, else zlib).
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import beside
from .kernel import Kernel
from .limits import Limits
from .parts import Parts

try:
    import zstandard
except ImportError:  # vLLM environments need not have it
    zstandard = None  # type: ignore[assignment]  # a module, if it is installed

MAGIC = b"GATELOG1"
BLOCK_MAGIC = 0x4B4C4247
BLOCK_HEAD = struct.Struct("<6I")
ZLIB, ZSTD = 1, 2
STEPS_PER_BLOCK = 256
FLUSH_AFTER_S = 1.0

COLUMNS = (
    "index",
    "start_ns",
    "duration_ns",
    "tokens",
    "prefill_tokens",
    "decode_tokens",
    "requests",
)


@dataclass(frozen=True, slots=True)
class Header:
    """What was logged. Counts are by logical expert; `placement[e]` is the EP rank that holds
    expert e."""

    engine: str
    model: str
    layers: int
    experts: int
    top_k: int
    count_bytes: int = 2  # of one count: 2 if no step can exceed 65535 tokens, else 4
    ranks: int = 1  # expert-parallel ranks; 1: no expert parallelism
    placement: tuple[int, ...] = ()
    dp: int = 0  # which data-parallel rank and pipeline stage wrote this file, and of how many
    dp_size: int = 1
    pp: int = 0
    pp_size: int = 1
    layer_names: tuple[str, ...] = ()
    hook: str = ""  # how the router was tapped
    sample: int = 1  # one step in so many was recorded
    host: str = ""  # of a server that spans several nodes, as is its rank among them
    node: int = 0
    nodes: int = 1
    clock_offset_ns: int = 0  # the first node's wall clock less this one's
    kernel: Kernel | None = None  # that computes the experts; logs of earlier versions have none
    wall_ns: int = field(default_factory=time.time_ns)  # a clock pair: wall time at
    monotonic_ns: int = field(default_factory=time.perf_counter_ns)  # this monotonic time
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step. `counts[l, e]`: tokens that expert e of layer l got; in every layer, Σ_e =
    top_k × tokens."""

    index: int  # forward passes before it, dummy ones included
    start_ns: int  # monotonic
    duration_ns: int
    tokens: int
    prefill_tokens: int
    decode_tokens: int
    requests: int
    segments: Mapping[str, int]  # tokens of each segment (a dataset's label, from the request id)
    counts: npt.NDArray[np.integer[Any]]  # [layers, experts]


class GateLogWriter:
    """Appends steps to one log; a block is written once 256 steps or one second have passed.

    A sidecar `<file>.json` holds the totals; `closed` in it is true only after `close()`.
    """

    def __init__(self, path: Path, header: Header, limits: Limits | None = None) -> None:
        self.path, self.header = path, header
        self.steps = self.tokens = self.violations = 0
        # more for the sidecar: drops, dummy steps, why recording stopped
        self.notes: dict[str, Any] = {}
        self._pending: list[Step] = []
        self._flushed_at = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps(asdict(header), separators=(",", ":")).encode()
        head = MAGIC + struct.pack("<I", len(head)) + head
        own = (limits or Limits()).of_rank(header.dp_size * header.pp_size)
        self.parts = Parts(path, head, own)
        self.write_totals(closed=False)

    def append(self, step: Step) -> None:
        """Queue a step. ValueError if its counts do not have the shape in the header."""
        if step.counts.shape != (self.header.layers, self.header.experts):
            raise ValueError(
                f"counts {step.counts.shape}, header {(self.header.layers, self.header.experts)}"
            )
        self._pending.append(step)
        is_due = time.monotonic() - self._flushed_at >= FLUSH_AFTER_S
        if is_due or len(self._pending) >= STEPS_PER_BLOCK:
            self.flush()

    def flush(self) -> None:
        """Write the queued steps as one block, in one write."""
        self._flushed_at = time.monotonic()
        if not self._pending:
            self.parts.follow()
            return
        steps, self._pending = self._pending, []
        self.parts.write(encode_block(steps, self.header))
        wrong = [s for s in steps if np.any(s.counts.sum(axis=1) != self.header.top_k * s.tokens)]
        self.violations += len(wrong)
        self.steps += len(steps)
        self.tokens += sum(s.tokens for s in steps)

    def close(self) -> None:
        """Flush, close the log, and mark it as closed cleanly. A second call does nothing."""
        if self.parts.is_closed:
            return
        self.flush()
        self.parts.close()
        self.write_totals(closed=True)

    def write_totals(self, *, closed: bool = False) -> None:
        """Write the sidecar, as of the last block."""
        totals = {
            "closed": closed,
            "steps": self.steps,
            "tokens": self.tokens,
            "violations": self.violations,
        }
        totals |= self.notes
        beside.write(self.path.with_name(self.path.name + ".json"), json.dumps(totals) + "\n")


def encode_block(steps: list[Step], header: Header) -> bytes:
    """A whole block, head included."""
    labels = sorted({label for s in steps for label in s.segments})
    names = json.dumps(labels, separators=(",", ":")).encode()
    columns = np.array([[getattr(s, c) for s in steps] for c in COLUMNS], dtype="<i8")
    segments = np.array(
        [[s.segments.get(label, 0) for s in steps] for label in labels], dtype="<i8"
    )
    counts = np.stack([s.counts for s in steps])
    if counts.max(initial=0) >= 1 << (8 * header.count_bytes) or counts.min(initial=0) < 0:
        raise ValueError(f"a count does not fit into {header.count_bytes} bytes")
    expert_major = np.ascontiguousarray(counts.transpose(2, 1, 0), dtype=f"<u{header.count_bytes}")
    planes = expert_major.view(np.uint8).reshape(-1, header.count_bytes).T
    raw = (
        struct.pack("<I", len(names))
        + names
        + columns.tobytes()
        + segments.tobytes()
        + planes.tobytes()
    )
    codec, packed = _packed(raw)
    crc = zlib.crc32(packed)
    return BLOCK_HEAD.pack(BLOCK_MAGIC, len(steps), len(raw), len(packed), crc, codec) + packed


def _packed(raw: bytes) -> tuple[int, bytes]:
    if zstandard:
        return ZSTD, zstandard.compress(raw, 1)
    return ZLIB, zlib.compress(raw, 1)
