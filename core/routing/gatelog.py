"""Reads one gate log in our binary format; `core.recorder.gatescope_recorder.gatelog` defines its
bytes."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from core.errors import GateLogError
from core.files import NOT_JSON
from core.recorder.gatescope_recorder.gatelog import (
    BLOCK_HEAD,
    BLOCK_MAGIC,
    COLUMNS,
    MAGIC,
    ZLIB,
    ZSTD,
    Header,
)
from core.recorder.gatescope_recorder.kernel import Kernel
from core.stats.arrays import Bools, Floats, Ints

Counts = npt.NDArray[np.integer[Any]]
MAX_HEADER_BYTES = 1 << 24
MAX_BLOCK_BYTES = 1 << 30
MAX_NS = 1 << 62  # of a clock: two of them may be added


@dataclass(frozen=True, slots=True)
class GateLog:
    """Steps of one log. `loads[s, l, e]`: tokens that expert e of layer l got in step s."""

    loads: Counts  # in the narrowest unsigned type that holds them: widen before arithmetic
    columns: dict[str, Ints]  # COLUMNS, each [steps]
    segments: dict[str, Ints]  # label → tokens of that label in each step
    top_k: int
    # EP rank of each expert; empty without expert parallelism, and under EPLB
    placement: tuple[int, ...] = ()
    lost: str = ""  # what could not be read at the end of the file
    by_rank: Floats | None = None  # [steps, layers, EP ranks]: loads under EPLB's map at each step
    moved: bool = False  # EPLB placed the experts
    layer_numbers: tuple[int, ...] = ()  # the model's own; empty: counted from 0
    kernel: Kernel | None = None  # None: the log does not say
    dp_size: int = 1  # data-parallel ranks that the server has
    nodes: int = 1  # machines that it spans
    left_node: Ints | None = None  # [steps]: `core.routing.nodes.left`, of all ranks

    @property
    def numbers(self) -> tuple[int, ...]:
        """What each layer is called."""
        return self.layer_numbers or tuple(range(self.loads.shape[1]))

    @property
    def tokens(self) -> Ints:
        return self.columns["tokens"]

    @property
    def ranks(self) -> int:
        """EP ranks whose loads are known; 0 if there are none."""
        if self.by_rank is not None:
            return int(self.by_rank.shape[-1])
        return max(self.placement, default=-1) + 1

    @property
    def placed(self) -> str:
        """How experts were placed on ranks: linear, round robin or EPLB; empty without expert
        parallelism."""
        if self.moved:
            return "EPLB" if self.by_rank is not None else "EPLB, but no map of it was logged"
        if not self.placement:
            return ""
        return "linear" if self.placement == tuple(sorted(self.placement)) else "round robin"

    def rank_loads(self) -> Floats | None:
        """[steps, layers, EP ranks]; None without expert parallelism, and under EPLB without a
        map."""
        if self.by_rank is not None or not self.placement:
            return self.by_rank
        return np.asarray(self.loads @ np.eye(self.ranks)[np.asarray(self.placement)])

    def where(self, mask: Bools) -> GateLog:
        """The steps that `mask` [steps] marks."""
        if mask.all():
            return self
        return replace(
            self,
            loads=self.loads[mask],
            columns={k: v[mask] for k, v in self.columns.items()},
            segments={k: v[mask] for k, v in self.segments.items()},
            by_rank=None if self.by_rank is None else self.by_rank[mask],
            left_node=None if self.left_node is None else self.left_node[mask],
        )

    def of(self, label: str) -> GateLog:
        """The steps whose tokens all belong to segment `label`; a step with tokens of two segments
        counts for neither."""
        own = self.segments.get(label, np.zeros(len(self.tokens), dtype=np.int64))
        return self.where((own == self.tokens) & (own > 0))


@dataclass(slots=True)
class Follower:
    """Reads a growing log: each `read()` returns the blocks completed since the last one."""

    path: Path
    header: Header | None = None
    place: int = 0  # bytes read so far
    lost: str = field(default="")

    def read(self, enough: float = math.inf) -> GateLog:
        """The new whole blocks, until `enough` counts are read. `lost` says what follows them and
        cannot be read.

        GateLogError if the file is not a gate log, or if the next block is corrupt: what follows
        such a block is never read.
        """
        with open(self.path, "rb") as file:
            if self.header is None:
                self.header, self.place = _read_header(self.path, file)
            file.seek(self.place)
            blocks: list[_Block] = []
            counts, corrupt = 0, ""
            try:
                while counts < enough and (block := _read_block(self.path, file, self.header)):
                    blocks.append(block)
                    counts += block.loads.size
                    self.place += block.size
            except GateLogError as error:
                if not blocks:
                    raise
                corrupt = f" ({str(error).removeprefix(f'{self.path}: ')})"
            more = file.seek(0, os.SEEK_END) - self.place
        is_lost = more and counts < enough
        self.lost = f"{more} bytes after the last whole block{corrupt}" if is_lost else ""
        return _joined(blocks, self.header, self.lost)


def read(path: Path) -> GateLog:
    """The whole log; a torn end is left out and named in `lost`. GateLogError as in
    `Follower.read`."""
    try:
        return Follower(path).read()
    except OSError as error:
        raise GateLogError(f"{path}: cannot be read: {error.strerror}") from None


def header(path: Path) -> Header:
    """What a log says of itself, also while it is still empty. GateLogError as in `read`."""
    try:
        with open(path, "rb") as file:
            return _read_header(path, file)[0]
    except OSError as error:
        raise GateLogError(f"{path}: cannot be read: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class _Block:
    columns: Ints  # [columns, steps]
    labels: tuple[str, ...]
    segments: Ints  # [labels, steps]
    loads: Counts  # [steps, layers, experts]
    size: int  # bytes in the file


def _read_header(path: Path, file: BinaryIO) -> tuple[Header, int]:
    """The header, and where the first block starts."""
    head = file.read(12)
    if not MAGIC.startswith(head[:8]):
        is_other = head[:7] == MAGIC[:7]
        found = f"version {head[7:8]!r} of the format" if is_other else "not a gate log"
        raise GateLogError(f"{path}: {found}: it does not start with {MAGIC.decode()}")
    length = int.from_bytes(head[8:], "little")
    if length > MAX_HEADER_BYTES:
        raise GateLogError(
            f"{path}: a header of {length} bytes: damaged, or written in another byte order"
        )
    text = file.read(length)
    if len(head) < 12 or len(text) < length:
        raise GateLogError(f"{path}: the header is cut off")
    try:
        if (schema := msgspec.json.decode(text, type=_Schema).schema) != 1:
            raise GateLogError(f"{path}: schema {schema}, this version reads schema 1")
        header = msgspec.json.decode(text, type=Header)
    except NOT_JSON as error:
        raise GateLogError(f"{path}: the header cannot be read: {error}") from None
    _check(path, header)
    return header, len(head) + length


class _Schema(msgspec.Struct):
    schema: int


def _check(path: Path, header: Header) -> None:
    sizes = (
        header.layers,
        header.experts,
        header.top_k,
        header.ranks,
        header.dp_size,
        header.pp_size,
    )
    if not all(0 < n < 1 << 20 for n in sizes) or header.count_bytes not in (1, 2, 4):
        raise GateLogError(
            f"{path}: impossible sizes in the header: {sizes}, {header.count_bytes} bytes a count"
        )
    clocks = header.wall_ns, header.monotonic_ns, abs(header.clock_offset_ns)
    if not all(0 <= ns < MAX_NS for ns in clocks):
        raise GateLogError(
            f"{path}: impossible clocks in the header: {header.wall_ns}, {header.monotonic_ns}"
        )
    placed = header.placement if header.ranks > 1 else ()
    if len(placed) not in (0, header.experts) or not all(
        0 <= rank < header.ranks for rank in placed
    ):
        raise GateLogError(
            f"{path}: the header places {len(placed)} of {header.experts} experts on ranks that do"
            f" not exist: there are {header.ranks}"
        )


def _read_block(path: Path, file: BinaryIO, header: Header) -> _Block | None:
    """The block that starts at the file's position; None if the file ends before the block
    does."""
    head = file.read(BLOCK_HEAD.size)
    if len(head) < BLOCK_HEAD.size:
        return None
    magic, steps, raw_len, packed_len, crc, codec = BLOCK_HEAD.unpack(head)
    if magic != BLOCK_MAGIC or max(raw_len, packed_len) > MAX_BLOCK_BYTES:
        raise GateLogError(f"{path}: corrupt: no block where one should start")
    packed = file.read(packed_len)
    if len(packed) < packed_len:
        return None
    if zlib.crc32(packed) != crc:
        raise GateLogError(f"{path}: corrupt: a block of {steps} steps has a wrong checksum")
    try:
        return _decode(_unpacked(packed, raw_len, codec), steps, header, len(head) + packed_len)
    except (ValueError, struct.error, zlib.error, *NOT_JSON) as error:
        raise GateLogError(
            f"{path}: corrupt: a block of {steps} steps does not decode: {error}"
        ) from None


def _unpacked(packed: bytes, raw_len: int, codec: int) -> bytes:
    if codec == ZLIB:
        return zlib.decompressobj().decompress(packed, raw_len)
    if codec != ZSTD:
        raise ValueError(f"unknown codec {codec}")
    import zstandard

    try:
        if (size := zstandard.frame_content_size(packed)) > raw_len:
            raise ValueError(f"{size} bytes, more than the {raw_len} announced")
        return zstandard.decompress(packed, max_output_size=raw_len)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _decode(raw: bytes, steps: int, header: Header, size: int) -> _Block:
    (names_len,) = struct.unpack_from("<I", raw)
    labels = msgspec.json.decode(raw[4 : 4 + names_len], type=tuple[str, ...])
    place = 4 + names_len
    columns = np.frombuffer(raw, "<i8", len(COLUMNS) * steps, place).reshape(len(COLUMNS), steps)
    place += columns.nbytes
    segments = np.frombuffer(raw, "<i8", len(labels) * steps, place).reshape(len(labels), steps)
    place += segments.nbytes
    if min(columns[3:].min(initial=0), segments.min(initial=0)) < 0:
        raise ValueError("a negative number of tokens")
    counts = _counts(np.frombuffer(raw, np.uint8, -1, place).reshape(header.count_bytes, -1))
    loads = counts.reshape(header.experts, header.layers, steps).transpose(2, 1, 0)
    return _Block(columns.astype(np.int64), labels, segments.astype(np.int64), loads, size)


def _counts(planes: npt.NDArray[np.uint8]) -> Counts:
    """Counts from their bytes [bytes of a count, counts], low bytes first; high bytes that are all
    zero are skipped."""
    width = len(planes)
    while width > 1 and not planes[width - 1].max(initial=0):
        width -= 1
    counts: Counts = planes[width - 1]
    if width > 1:
        counts = counts.astype("<u2" if width == 2 else "<u4")
    for plane in planes[: width - 1][::-1]:
        counts <<= 8
        counts |= plane
    return counts


def _joined(blocks: list[_Block], header: Header, lost: str) -> GateLog:
    steps = sum(b.columns.shape[1] for b in blocks)
    columns = np.concatenate(
        [np.empty((len(COLUMNS), 0), np.int64), *(b.columns for b in blocks)], axis=1
    )
    none = np.empty((0, header.layers, header.experts), np.uint8)
    loads = [b.loads for b in blocks] or [none]
    segments: dict[str, Ints] = {}
    place = 0
    for block in blocks:
        for label, tokens in zip(block.labels, block.segments, strict=True):
            segments.setdefault(label, np.zeros(steps, np.int64))[place : place + len(tokens)] = (
                tokens
            )
        place += block.columns.shape[1]
    named = dict(zip(COLUMNS, columns, strict=True))
    whole = loads[0] if len(loads) == 1 else np.concatenate(loads)
    placement = header.placement if header.ranks > 1 else ()
    moved = header.ranks > 1 and not header.placement
    return GateLog(
        whole,
        named,
        segments,
        header.top_k,
        placement,
        lost,
        moved=moved,
        layer_numbers=numbers_in(header.layer_names, header.layers),
        kernel=header.kernel,
        dp_size=header.dp_size,
        nodes=header.nodes,
    )


def numbers_in(names: Sequence[str], layers: int) -> tuple[int, ...]:
    """3, 4, … of "model.layers.3.mlp.experts", …: a model whose first layers are dense counts those
    too. Empty where the names do not give each layer a number of its own."""
    found = [[int(part) for part in name.split(".") if part.isdecimal()] for name in names]
    numbers = tuple(parts[0] for parts in found if parts)
    return numbers if len(numbers) == len(set(numbers)) == layers else ()
