"""Read gate logs in our binary format, whose bytes are defined beside their writer."""

from __future__ import annotations

import functools
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from core.eplb import Maps
from core.recorder.gatescope_recorder.gatelog import (
    BLOCK_HEAD,
    BLOCK_MAGIC,
    COLUMNS,
    MAGIC,
    ZLIB,
    ZSTD,
    Header,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.integer[Any]]
MAX_HEADER_BYTES = 1 << 24
MAX_BLOCK_BYTES = 1 << 30
PART_COUNTS = 1 << 18  # of one part of a log: enough that NumPy's calls cost little, and fits a processor's cache
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
START = re.compile(r"-start(\d+)$")  # of a server that was started again


class GateLogError(Exception):
    """A gate log that cannot be read; the text names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class GateLog:
    """Steps of one log. `loads[s, l, e]`: tokens that expert e of layer l got in step s."""

    loads: Counts  # [steps, layers, experts], in the narrowest unsigned type that holds them: widen before arithmetic
    columns: dict[str, Ints]  # each [steps]: index, start_ns, duration_ns, tokens, prefill_tokens, …
    segments: dict[str, Ints]  # label → tokens of that label in each step
    top_k: int
    placement: tuple[int, ...] = ()  # EP rank of each expert; empty without expert parallelism, and under EPLB
    lost: str = ""  # what was not readable at the end of the file
    by_rank: Floats | None = None  # [steps, layers, EP ranks]: loads by EPLB's map of the moment
    moved: bool = False  # EPLB placed the experts

    @property
    def tokens(self) -> Ints:
        return self.columns["tokens"]

    @property
    def ranks(self) -> int:
        """EP ranks whose loads are known; 0 where there are none."""
        return max(self.placement, default=-1) + 1 if self.by_rank is None else self.by_rank.shape[-1]

    @property
    def placed(self) -> str:
        """How experts were placed on ranks: linear, round robin, EPLB, or nothing without expert parallelism."""
        if self.moved:
            return "EPLB" if self.by_rank is not None else "EPLB, but no map of it was logged"
        linear = self.placement == tuple(sorted(self.placement))
        return ("linear" if linear else "round robin") if self.placement else ""

    def where(self, mask: npt.NDArray[np.bool_]) -> GateLog:
        """The steps that `mask` [steps] marks."""
        if mask.all():
            return self
        return replace(
            self,
            loads=self.loads[mask],
            columns={k: v[mask] for k, v in self.columns.items()},
            segments={k: v[mask] for k, v in self.segments.items()},
            by_rank=None if self.by_rank is None else self.by_rank[mask],
        )

    def of(self, label: str) -> GateLog:
        """The steps whose tokens all belong to segment `label`; a step shared with another is nobody's."""
        own = self.segments.get(label, np.zeros(len(self.tokens), dtype=np.int64))
        return self.where((own == self.tokens) & (own > 0))

    def shared_steps(self, label: str) -> int:
        """Steps that hold tokens of `label` beside others'."""
        own = self.segments.get(label, np.zeros(len(self.tokens), dtype=np.int64))
        return int(((own > 0) & (own < self.tokens)).sum())


@dataclass(slots=True)
class Follower:
    """Reads a growing log: each `read()` returns the blocks that were completed since the last."""

    path: Path
    header: Header | None = None
    place: int = 0  # bytes read so far
    lost: str = field(default="")

    def read(self, enough: float = math.inf) -> GateLog:
        """The new whole blocks, until `enough` counts are read. `lost` says what follows them that is not readable.

        GateLogError where it is not a gate log, or where the next block is corrupt: what follows it is never read.
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
        self.lost = f"{more} bytes after the last whole block{corrupt}" if more and counts < enough else ""
        return _joined(blocks, self.header, self.lost)


def read(path: Path) -> GateLog:
    """The whole log; a torn tail is left out and named in `lost`. GateLogError as `Follower.read`."""
    try:
        return Follower(path).read()
    except OSError as error:
        raise GateLogError(f"{path}: cannot be read: {error.strerror}") from None


class ServerLog:
    """The steps of one server start: its folder of logs, DP ranks summed by forward index, PP stages put together.

    A step is given out once every rank has written a later one. Steps that a rank lost are left out and counted in
    `incomplete`: their sums would be too small.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.incomplete = 0
        self._enough = math.inf  # counts of one read
        self._followers: dict[Path, Follower] = {}
        self._pending: dict[Path, list[GateLog]] = {}
        self._last: dict[Path, int] = {}
        self._maps: list[Maps] = []  # by pipeline stage, where EPLB moves experts

    def read(self) -> GateLog:
        """The steps that became whole since the last read. GateLogError where a rank's log is missing or corrupt."""
        opened = self._open()
        behind = min(self._last.values())
        for path, follower in self._followers.items():
            if path in opened or (self._enough < math.inf and self._last[path] > behind):  # others have to catch up
                continue
            new = follower.read(self._enough)
            if len(new.tokens):
                self._pending[path].append(new)
                self._last[path] = int(new.columns["index"][-1])
        whole_up_to = min(self._last.values())
        ranks = {path: self._take(path, whole_up_to) for path in self._followers}
        return self._mapped(self._merged(ranks))

    def blocks(self) -> Iterator[GateLog]:
        """The same steps in parts of a block or a few, so that a log of any size fits in memory."""
        self._enough = PART_COUNTS
        while True:
            before = self._read_up_to
            try:
                part = self.read()
            except GateLogError:
                if self.lost:  # said there: what was whole has been given out
                    return
                raise
            if len(part.tokens):
                yield part
            if self._read_up_to == before:
                return

    @property
    def lost(self) -> str:
        """What is not readable at the ends of the logs, by file."""
        return "; ".join(f"{path}: {f.lost}" for path, f in self._followers.items() if f.lost)

    @property
    def left_out(self) -> str:
        """Which steps are not in what was read, since some rank has no part of them: true once the log has ended; while
        it grows, they may only wait for a rank that is behind."""
        told = []
        if self.incomplete:
            told.append(f"{self.incomplete} steps that a rank lost")
        parts = [part for pending in self._pending.values() for part in pending]
        if waiting := {i for part in parts for i in part.columns["index"][part.tokens > 0].tolist()}:
            first = min(self._last, key=self._last.__getitem__)
            told.append(f"{len(waiting)} steps after forward pass {self._last[first]}, where {first.stem} ends")
        return f"{self.folder}: left out: {'; '.join(told)}" if told else ""

    @property
    def _read_up_to(self) -> int:
        return sum(follower.place for follower in self._followers.values())

    def _open(self) -> set[Path]:
        """Read the first of each log that is new; which those are."""
        opened = set()
        for path in sorted(self.folder.glob("*.gatelog")):
            if path not in self._followers:
                follower = Follower(path)
                first = follower.read(
                    self._enough
                )  # raises where its header is still being written: met anew next time
                self._followers[path], self._pending[path] = follower, [first]
                opened.add(path)
                self._last[path] = max([-1, *first.columns["index"][-1:].tolist()])
        headers = [f.header for f in self._followers.values() if f.header]
        expected = headers[0].dp_size * headers[0].pp_size if headers else 1
        if len(headers) < expected:
            reasons = "; ".join(problems(self.folder)) or "is the server still starting?"
            raise GateLogError(f"{self.folder}: {len(headers)} of {expected} gate logs are there: {reasons}")
        return opened

    def _take(self, path: Path, last: int) -> GateLog:
        rank = _concatenated(self._pending[path])
        due = rank.columns["index"] <= last
        self._pending[path] = [rank.where(~due)]
        return rank.where(due)

    def _merged(self, ranks: dict[Path, GateLog]) -> GateLog:
        if len(ranks) == 1:
            (rank,) = ranks.values()
            return rank.where(rank.tokens > 0)
        indices = [rank.columns["index"] for rank in ranks.values()]
        common = functools.reduce(np.intersect1d, indices)
        self.incomplete += len(functools.reduce(np.union1d, indices)) - len(common)
        stages: dict[int, dict[int, GateLog]] = {}
        for path, rank in ranks.items():
            header = self._followers[path].header
            assert header is not None  # every follower has read
            whole = rank.where(np.isin(rank.columns["index"], common))
            stages.setdefault(header.dp, {})[header.pp] = whole
        return _summed([[by_pp[pp] for pp in sorted(by_pp)] for _, by_pp in sorted(stages.items())])

    def _mapped(self, log: GateLog) -> GateLog:
        """With the loads by rank, where EPLB moves experts and its maps were logged."""
        if not log.moved:
            return log
        headers = {path: f.header for path, f in self._followers.items() if f.header and f.header.dp == 0}
        stages = sorted((header.pp, path, header) for path, header in headers.items())
        self._maps = self._maps or [Maps(path.with_suffix(".eplb.jsonl"), header.ranks) for _, path, header in stages]
        edges = np.cumsum([header.layers for _, _, header in stages])[:-1]
        found = []
        for maps, loads in zip(self._maps, np.split(log.loads, edges, axis=1), strict=True):
            try:
                maps.read()
                found.append(maps.rank_loads(loads, log.columns["index"]))
            except ValueError as error:
                raise GateLogError(str(error)) from None
        known = [by_rank for by_rank in found if by_rank is not None]
        return replace(log, by_rank=np.concatenate(known, axis=1)) if len(known) == len(found) else log


def _summed(ranks: list[list[GateLog]]) -> GateLog:
    """`ranks[dp][pp]`, all with the same steps → one log without the steps that no rank had a token in."""
    first = [stages[0] for stages in ranks]
    loads = np.sum([np.concatenate([stage.loads for stage in stages], axis=1) for stages in ranks], axis=0)
    columns = {name: np.sum([rank.columns[name] for rank in first], axis=0) for name in COLUMNS}
    columns["index"] = first[0].columns["index"]
    columns["start_ns"], columns["duration_ns"] = _span([stage for stages in ranks for stage in stages])
    labels = sorted({label for rank in first for label in rank.segments})
    none = np.zeros(len(columns["index"]), np.int64)
    segments = {
        label: np.asarray(np.sum([rank.segments.get(label, none) for rank in first], axis=0)) for label in labels
    }
    lost = "; ".join(stage.lost for stages in ranks for stage in stages if stage.lost)
    merged = replace(first[0], loads=np.asarray(loads), columns=columns, segments=segments, lost=lost)
    return merged.where(merged.tokens > 0)


def _span(ranks: list[GateLog]) -> tuple[Ints, Ints]:
    """Start and duration of each step: from the first rank that began it to the last that ended it."""
    idle = np.array([rank.tokens == 0 for rank in ranks])
    starts = np.array([rank.columns["start_ns"] for rank in ranks])
    ends = starts + np.array([rank.columns["duration_ns"] for rank in ranks])
    start = np.where(idle, np.iinfo(np.int64).max, starts).min(axis=0)
    return start, np.where(idle, 0, ends).max(axis=0) - start


def _concatenated(parts: list[GateLog]) -> GateLog:
    parts = [part for part in parts if len(part.tokens)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    labels = sorted({label for part in parts for label in part.segments})
    by_rank = [p.by_rank for p in parts if p.by_rank is not None]
    return replace(
        parts[0],
        loads=np.concatenate([p.loads for p in parts]),
        columns={name: np.concatenate([p.columns[name] for p in parts]) for name in COLUMNS},
        segments={
            label: np.concatenate([p.segments.get(label, np.zeros(len(p.tokens), np.int64)) for p in parts])
            for label in labels
        },
        lost=parts[-1].lost,
        by_rank=np.concatenate(by_rank) if len(by_rank) == len(parts) else None,
    )


def read_folder(folder: Path) -> GateLog:
    """All that one server start logged, ranks merged. GateLogError as `ServerLog.read`."""
    return ServerLog(folder).read()


def start_of(folder: Path) -> int:
    """Which start of the server a folder of gate logs is of: 10 comes after 2."""
    return int(found[1]) if (found := START.search(folder.name)) else 1


def starts(backend: Path) -> list[Path]:
    """A backend's folders of gate logs, one a start of the server, in their order."""
    return sorted((p for p in backend.glob("gate_logs*") if p.is_dir()), key=start_of)


def problems(folder: Path) -> list[str]:
    """What the recorder itself reports in the files beside its logs: refusals, its own failures, losses."""
    found = []
    for side in sorted(folder.glob("*.gatelog.json")):
        try:
            totals = msgspec.json.decode(side.read_bytes(), type=dict[str, Any])
        except (OSError, *NOT_JSON) as error:
            found.append(f"{side.name}: not readable: {error}")
            continue
        rank = side.name.removesuffix(".gatelog.json")
        found += [f"{rank}: {totals[key]}" for key in ("refused", "disabled") if totals.get(key)]
        found += [
            f"{rank}: {totals[key]} steps {what}"
            for key, what in (("dropped", "were dropped"), ("violations", "do not add up to top_k × tokens"))
            if totals.get(key)
        ]
        if totals.get("silent"):
            silent = ", ".join(map(str, totals["silent"])) if isinstance(totals["silent"], list) else totals["silent"]
            found.append(f"{rank}: routers that were not seen in every step: {silent}")
    return found


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
        known = MAGIC.decode()
        found = f"version {head[7:8]!r} of the format" if head[:7] == MAGIC[:7] else "not a gate log"
        raise GateLogError(f"{path}: {found}: it does not start with {known}")
    length = int.from_bytes(head[8:], "little")
    if length > MAX_HEADER_BYTES:
        raise GateLogError(f"{path}: a header of {length} bytes: damaged, or written in another byte order")
    text = file.read(length)
    if len(head) < 12 or len(text) < length:
        raise GateLogError(f"{path}: the header is cut off")
    try:
        if (schema := msgspec.json.decode(text, type=_Schema).schema) != 1:
            raise GateLogError(f"{path}: schema {schema}, this version reads schema 1")
        header = msgspec.json.decode(text, type=Header)
    except NOT_JSON as error:
        raise GateLogError(f"{path}: the header is not readable: {error}") from None
    _check(path, header)
    return header, len(head) + length


class _Schema(msgspec.Struct):
    schema: int


def _check(path: Path, header: Header) -> None:
    sizes = (header.layers, header.experts, header.top_k, header.ranks, header.dp_size, header.pp_size)
    if not all(0 < n < 1 << 20 for n in sizes) or header.count_bytes not in (1, 2, 4):
        raise GateLogError(f"{path}: the header's sizes make no sense: {sizes}, {header.count_bytes} bytes a count")
    placed = header.placement if header.ranks > 1 else ()
    if len(placed) not in (0, header.experts) or not all(0 <= rank < header.ranks for rank in placed):
        raise GateLogError(f"{path}: the header places {len(placed)} of {header.experts} experts on ranks it has not")


def _read_block(path: Path, file: BinaryIO, header: Header) -> _Block | None:
    """The block that starts at the file's position; None where the file ends before the block does."""
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
        raise GateLogError(f"{path}: corrupt: a block of {steps} steps does not decode: {error}") from None


def _unpacked(packed: bytes, raw_len: int, codec: int) -> bytes:
    if codec == ZLIB:
        return zlib.decompressobj().decompress(packed, raw_len)
    if codec != ZSTD:
        raise ValueError(f"unknown codec {codec}")
    import zstandard

    try:
        if (size := zstandard.frame_content_size(packed)) > raw_len:
            raise ValueError(f"{size} bytes, and {raw_len} are announced")
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
    """Counts from their bytes [bytes of a count, counts], low bytes first; high bytes that are all zero count not."""
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
    columns = np.concatenate([np.empty((len(COLUMNS), 0), np.int64), *(b.columns for b in blocks)], axis=1)
    none = np.empty((0, header.layers, header.experts), np.uint8)
    loads = [b.loads for b in blocks] or [none]
    segments: dict[str, Ints] = {}
    place = 0
    for block in blocks:
        for label, tokens in zip(block.labels, block.segments, strict=True):
            segments.setdefault(label, np.zeros(steps, np.int64))[place : place + len(tokens)] = tokens
        place += block.columns.shape[1]
    named = dict(zip(COLUMNS, columns, strict=True))
    whole = loads[0] if len(loads) == 1 else np.concatenate(loads)
    placement = header.placement if header.ranks > 1 else ()
    moved = header.ranks > 1 and not header.placement
    return GateLog(whole, named, segments, header.top_k, placement, lost, moved=moved)
