"""The gate logs of one server start: a folder of files, data-parallel ranks summed, pipeline stages
joined."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from core.errors import GateLogError
from core.files import NOT_JSON
from core.recorder.gatescope_recorder.gatelog import COLUMNS, Header
from core.recorder.gatescope_recorder.kernel import Kernel
from core.recorder.gatescope_recorder.parts import LOG
from core.routing import gatelog, nodes
from core.routing.eplb import Maps
from core.routing.gatelog import GateLog
from core.routing.rank import RankLog
from core.stats.arrays import Ints

# counts in one part of a log: many, so that NumPy's calls cost little, yet they fit in a cache
PART_COUNTS = 1 << 18
PART = re.compile(rf"\.part\d+(?={re.escape(LOG)}$)")
START = re.compile(r"-start(\d+)$")  # the folder of a server that was started again


class GateFolder:
    """The steps of one server start, read while its logs grow: DP ranks summed by forward index, PP
    stages joined by layer.

    A step is returned once every rank has written it or a later one. Steps that a rank lost are
    left out and counted in `incomplete`: their sums would be too small. Where old files were
    removed, the log begins at the first step that all ranks still have.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.incomplete = 0
        self._enough = math.inf  # counts to read at a time
        self._followers: dict[Path, RankLog] = {}  # by the first file of each rank
        self._pending: dict[Path, list[GateLog]] = {}
        self._last: dict[Path, int] = {}
        self._begins: dict[Path, int] = {}  # the first step of each rank whose beginning is gone
        self._maps: list[Maps] = []  # by pipeline stage, where EPLB moves experts

    def read(self) -> GateLog:
        """The steps that became complete since the last read. GateLogError if a rank's log is
        missing or corrupt."""
        opened = self._open()
        behind = min(self._last.values())
        for path, follower in self._followers.items():
            is_ahead = path in opened or self._last[path] > behind
            if self._enough < math.inf and is_ahead:  # the others catch up first
                continue
            while len((new := follower.read(self._enough)).tokens):
                self._keep(path, new)
                if self._enough < math.inf:
                    break
        whole_up_to = min(self._last.values())
        ranks = {path: self._take(path, whole_up_to) for path in self._followers}
        return self._mapped(self._merged(ranks))

    def blocks(self) -> Iterator[GateLog]:
        """The same steps, a few blocks at a time, so that a log of any size fits in memory."""
        self._enough = PART_COUNTS
        while True:
            before = self._read_up_to
            try:
                part = self.read()
            except GateLogError:
                if self.lost:  # it names the damage; all whole blocks have been returned
                    return
                raise
            if len(part.tokens):
                yield part
            if self._read_up_to == before:
                return

    @property
    def lost(self) -> str:
        """What cannot be read at the ends of the logs, by file."""
        return "; ".join(f"{path}: {f.lost}" for path, f in self._followers.items() if f.lost)

    @property
    def left_out(self) -> str:
        """Which steps were left out because a rank's part of them is missing. Final once the log
        has ended; while it grows, a rank that is behind may still complete some."""
        parts = [part for pending in self._pending.values() for part in pending]
        waiting = {i for part in parts for i in part.columns["index"][part.tokens > 0].tolist()}
        reasons = []
        if self.incomplete:
            reasons.append(f"{_steps(self.incomplete)} that a rank lost")
        if waiting:
            first = min(self._last, key=self._last.__getitem__)
            after = f"after forward pass {self._last[first]}, where {first.stem} ends"
            reasons.append(f"{_steps(len(waiting))} {after}")
        return f"{self.folder}: left out: {'; '.join(reasons)}" if reasons else ""

    @property
    def _read_up_to(self) -> int:
        return sum(follower.place for follower in self._followers.values())

    def _open(self) -> set[Path]:
        """Read the first blocks of each log that is new; returns the new ones."""
        opened = set()
        for path in first_files(self.folder):
            if path not in self._followers:
                follower = RankLog(path)
                # raises while the header is still being written: the next call tries again
                first = follower.read(self._enough)
                self._followers[path], self._pending[path], self._last[path] = follower, [], -1
                opened.add(path)
                self._keep(path, first)
        headers = [f.header for f in self._followers.values() if f.header]
        expected = headers[0].dp_size * headers[0].pp_size if headers else 1
        if len(headers) < expected:
            reasons = "; ".join(problems(self.folder)) or "is the server still starting?"
            raise GateLogError(
                f"{self.folder}: {len(headers)} of {expected} gate logs exist, without that of"
                f" {', '.join(missing_logs(self.folder)) or 'any rank'}: {reasons}"
            )
        return opened

    def _keep(self, path: Path, new: GateLog) -> None:
        """What was read of a rank, until all ranks are as far."""
        self._pending[path].append(new)
        for first, last in zip(new.columns["index"][:1], new.columns["index"][-1:], strict=True):
            self._last[path] = int(last)
            if self._followers[path].is_cut:
                self._begins.setdefault(path, int(first))

    def _take(self, path: Path, last: int) -> GateLog:
        rank = _concatenated(self._pending[path])
        index = rank.columns["index"]
        self._pending[path] = [rank.where(index > last)]
        return rank.where((index <= last) & (index >= max(self._begins.values(), default=0)))

    def _merged(self, ranks: dict[Path, GateLog]) -> GateLog:
        if len(ranks) == 1:
            (rank,) = ranks.values()
            return rank.where(rank.tokens > 0)
        indices = [rank.columns["index"] for rank in ranks.values()]
        common = functools.reduce(np.intersect1d, indices)
        self.incomplete += len(functools.reduce(np.union1d, indices)) - len(common)
        stages: dict[int, dict[int, GateLog]] = {}
        headers = {path: h for path in ranks if (h := self._followers[path].header)}
        head = min(headers.values(), key=lambda header: header.node)
        for path, rank in ranks.items():
            header = headers[path]  # every follower has read
            whole = rank.where(np.isin(rank.columns["index"], common))
            whole = replace(
                _by_clock_of(head, header, whole), left_node=nodes.left(header, whole.loads)
            )
            stages.setdefault(header.dp, {})[header.pp] = whole
        return _summed([[by_pp[pp] for pp in sorted(by_pp)] for _, by_pp in sorted(stages.items())])

    def _mapped(self, log: GateLog) -> GateLog:
        """`log` with the loads by rank, if EPLB moves experts and its maps were logged."""
        if not log.moved:
            return log
        headers = {
            path: f.header for path, f in self._followers.items() if f.header and f.header.dp == 0
        }
        stages = sorted((header.pp, path, header) for path, header in headers.items())
        self._maps = self._maps or [Maps(path, header.ranks) for _, path, header in stages]
        edges = np.cumsum([header.layers for _, _, header in stages])[:-1]
        found = []
        for maps, loads in zip(self._maps, np.split(log.loads, edges, axis=1), strict=True):
            try:
                maps.read()
                found.append(maps.rank_loads(loads, log.columns["index"]))
            except ValueError as error:
                raise GateLogError(str(error)) from None
        known = [by_rank for by_rank in found if by_rank is not None]
        if len(known) < len(found):
            return log
        return replace(log, by_rank=np.concatenate(known, axis=1))


def read(folder: Path) -> GateLog:
    """Everything that one server start logged, ranks merged. GateLogError as in
    `GateFolder.read`."""
    return GateFolder(folder).read()


def first_files(folder: Path) -> list[Path]:
    """The first file of each rank's log in a folder; it may be gone while later ones are there."""
    return sorted({path.with_name(PART.sub("", path.name)) for path in log_files(folder)})


def log_files(folder: Path) -> list[Path]:
    """The files of binary logs in a folder, by name, without hidden ones."""
    return sorted(p for p in folder.glob(f"*{LOG}") if not p.name.startswith("."))


def header(folder: Path) -> Header | None:
    """What the logs of one server start say of themselves, by the first that can be read."""
    for path in log_files(folder):
        with contextlib.suppress(GateLogError):
            return gatelog.header(path)
    return None


def missing_logs(folder: Path) -> list[str]:
    """The ranks that should have a log beside those that do, as dp1_pp0."""
    found = []
    for path in first_files(folder):
        with contextlib.suppress(GateLogError):
            found.append(gatelog.header(path))
    if not found:
        return []
    have = {(header.dp, header.pp) for header in found}
    due = itertools.product(range(found[0].dp_size), range(found[0].pp_size))
    return [f"dp{dp}_pp{pp}" for dp, pp in due if (dp, pp) not in have]


def kernel(folder: Path) -> Kernel | None:
    """The kernel of one server start; None if its logs do not say."""
    return found.kernel if (found := header(folder)) else None


def start_of(folder: Path) -> int:
    """The number of the server start that a folder of gate logs belongs to: 1, 2, …, 10."""
    return int(found[1]) if (found := START.search(folder.name)) else 1


def starts(backend: Path) -> list[Path]:
    """A backend's folders of gate logs, one per server start, in order."""
    return sorted((p for p in backend.glob("gate_logs*") if p.is_dir()), key=start_of)


def problems(folder: Path) -> list[str]:
    """What the recorder reports in the files beside its logs: refusals, failures, losses."""
    found = []
    for side in sorted(folder.glob("[!.]*.gatelog.json")):
        try:
            totals = msgspec.json.decode(side.read_bytes(), type=dict[str, Any])
        except (OSError, *NOT_JSON) as error:
            found.append(f"{side.name}: cannot be read: {error}")
            continue
        rank = side.name.removesuffix(".gatelog.json")
        found += [f"{rank}: {totals[key]}" for key in ("refused", "disabled") if totals.get(key)]
        if dropped := totals.get("dropped"):
            was = "was" if dropped == 1 else "were"
            found.append(f"{rank}: {_steps(dropped)} {was} dropped")
        if wrong := totals.get("violations"):
            found.append(f"{rank}: in {_steps(wrong)}, loads do not add up to top_k × tokens")
        if silent := totals.get("silent"):
            names = ", ".join(map(str, silent)) if isinstance(silent, list) else silent
            found.append(f"{rank}: routers not recorded in every step: {names}")
    return found


def _steps(count: object) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _summed(ranks: list[list[GateLog]]) -> GateLog:
    """`ranks[dp][pp]`, all with the same steps → one log, without the steps in which no rank had
    tokens."""
    first = [stages[0] for stages in ranks]
    loads = np.sum(
        [np.concatenate([stage.loads for stage in stages], axis=1) for stages in ranks], axis=0
    )
    columns = {name: np.sum([rank.columns[name] for rank in first], axis=0) for name in COLUMNS}
    columns["index"] = first[0].columns["index"]
    columns["start_ns"], columns["duration_ns"] = _span(ranks)
    labels = sorted({label for rank in first for label in rank.segments})
    none = np.zeros(len(columns["index"]), np.int64)
    segments = {
        label: np.asarray(np.sum([rank.segments.get(label, none) for rank in first], axis=0))
        for label in labels
    }
    lost = "; ".join(stage.lost for stages in ranks for stage in stages if stage.lost)
    lefts = [stage.left_node for stages in ranks for stage in stages]
    known = [each for each in lefts if each is not None]
    numbers = tuple(number for stage in ranks[0] for number in stage.layer_numbers)
    merged = replace(
        first[0],
        loads=np.asarray(loads),
        columns=columns,
        segments=segments,
        lost=lost,
        left_node=np.sum(known, axis=0) if len(known) == len(lefts) else None,
        layer_numbers=numbers if len(set(numbers)) == loads.shape[1] else (),
    )
    return merged.where(merged.tokens > 0)


def _span(ranks: list[list[GateLog]]) -> tuple[Ints, Ints]:
    """Start and duration of each step of `ranks[dp][pp]`: the earliest rank's start, the longest
    rank's own duration; an idle rank's times do not count.

    Each rank has its GPU's clock, and these drift apart (two H200: by 1.6 µs a second), so no
    duration is taken from one rank's clock to another's. Ranks wait for each other within a step
    and end together: the one that started first lasts longest, and start + duration is the step's
    end. The earliest start also keeps steps in order. Pipeline stages run one after the other: such
    a rank lasts from its first stage's start to its last one's end.
    """
    starts = np.array([[stage.columns["start_ns"] for stage in stages] for stages in ranks])
    took = np.array([[stage.columns["duration_ns"] for stage in stages] for stages in ranks])
    idle = np.array([stages[0].tokens == 0 for stages in ranks])
    began = starts.min(axis=1)
    lasted = (starts + took).max(axis=1) - began
    start = np.where(idle, np.iinfo(np.int64).max, began).min(axis=0)
    return start, np.where(idle, 0, lasted).max(axis=0)


def _by_clock_of(head: Header, header: Header, log: GateLog) -> GateLog:
    """A log of another node's rank, its times by the first node's clock."""
    if header.host == head.host:
        return log
    theirs = header.wall_ns + header.clock_offset_ns - header.monotonic_ns
    ours = head.wall_ns + head.clock_offset_ns - head.monotonic_ns
    return replace(log, columns=log.columns | {"start_ns": log.columns["start_ns"] + theirs - ours})


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
            label: np.concatenate(
                [p.segments.get(label, np.zeros(len(p.tokens), np.int64)) for p in parts]
            )
            for label in labels
        },
        lost=parts[-1].lost,
        by_rank=np.concatenate(by_rank) if len(by_rank) == len(parts) else None,
    )
