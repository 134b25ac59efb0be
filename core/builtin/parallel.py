"""Computes one layer's experts with R ranks at the same time; the layer ends with the slowest rank.

Tensor parallel: every rank has a slice of every expert's intermediate dimension. Expert parallel:
every rank has whole experts, expert e on rank e // (experts / R). In both, a rank computes a
partial output of all tokens, and the sum over the ranks is the layer's output. Rank 0 is the
calling process; the others are forked from it.

They are processes, not threads: NumPy holds the GIL between its kernels, and at decode size that is
most of the time.
"""

from __future__ import annotations

import math
import mmap
import os
import select
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from threading import Thread
from typing import NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from core.builtin.weights import Floats, Ints, Shape, Weights
from core.recorder.gatescope_recorder.kernel import Kernel

ROW_BLOCK = 256
"""Rows that an expert processes at a time: the intermediate result fits in the core's cache."""

Number = TypeVar("Number", np.float32, np.int64)


class Split(StrEnum):
    """What is split over the ranks."""

    TENSOR = "tensor parallel"
    EXPERT = "expert parallel"


@dataclass(frozen=True, slots=True)
class Layout:
    """A parallel layout of a model's experts."""

    split: Split
    ranks: int

    def check(self, shape: Shape) -> None:
        """ValueError if what is split is not divisible by the number of ranks."""
        name, size = (
            ("experts", shape.experts)
            if self.split is Split.EXPERT
            else ("intermediate size", shape.intermediate)
        )
        if self.ranks < 1 or size % self.ranks:
            raise ValueError(
                f"{self.split} over {self.ranks} ranks: their number must divide the {name}, {size}"
            )

    def placement(self, experts: int) -> tuple[int, ...]:
        """The rank of each expert; empty if experts are not split."""
        return (
            tuple(e * self.ranks // experts for e in range(experts))
            if self.split is Split.EXPERT
            else ()
        )

    def kernel(self, shape: Shape) -> Kernel:
        """What a rank computes with: NumPy, which has no tiles of its own."""
        parts = (1, self.ranks) if self.split is Split.EXPERT else (self.ranks, 1)
        return Kernel(
            "NumPy",
            "float32",
            experts=shape.experts,
            local_experts=shape.experts // parts[1],
            top_k=shape.top_k,
            columns=(2 * shape.intermediate // parts[0], shape.hidden),
        )


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part of the experts' weights."""

    experts: range  # whose weights it holds
    gate_up: Floats  # [layers, len(experts), hidden, 2 width]
    down: Floats  # [layers, len(experts), width, hidden]

    @classmethod
    def of(cls, weights: Weights, layout: Layout, rank: int) -> Shard:
        """Rank `rank`'s part, copied so that each matrix is contiguous."""
        experts, intermediate = weights.down.shape[1:3]
        if layout.split is Split.EXPERT:
            own = range(rank * experts // layout.ranks, (rank + 1) * experts // layout.ranks)
            part = slice(own.start, own.stop)
            return cls(own, weights.gate_up[:, part].copy(), weights.down[:, part].copy())
        width = intermediate // layout.ranks
        cut = slice(rank * width, (rank + 1) * width)
        gate, up = weights.gate_up[..., :intermediate], weights.gate_up[..., intermediate:]
        return cls(
            range(experts),
            np.concatenate([gate[..., cut], up[..., cut]], -1),
            weights.down[:, :, cut].copy(),
        )


@dataclass(frozen=True, slots=True)
class Exchange:
    """The ranks' shared memory. A row is one (token, expert) pair; rows are sorted by expert."""

    x: Floats  # [max_tokens, hidden]
    tokens: Ints  # [max_tokens top_k]: each row's token
    mix: Floats  # [max_tokens top_k]: each row's weight
    partial: Floats  # [ranks, max_tokens, hidden]: each rank's part of the layer's output

    @classmethod
    def allocate(cls, shape: Shape, ranks: int, max_tokens: int) -> Exchange:
        """Memory for batches of up to `max_tokens`."""
        rows = max_tokens * shape.top_k
        return cls(
            x=_shared((max_tokens, shape.hidden), np.float32),
            tokens=_shared((rows,), np.int64),
            mix=_shared((rows,), np.float32),
            partial=_shared((ranks, max_tokens, shape.hidden), np.float32),
        )


def _shared(dims: tuple[int, ...], dtype: type[Number]) -> npt.NDArray[Number]:
    """Zeros in memory that forked processes share."""
    memory = mmap.mmap(-1, math.prod(dims) * np.dtype(dtype).itemsize)
    return np.frombuffer(memory, dtype).reshape(dims)


@dataclass(frozen=True, slots=True)
class Job:
    """One layer's work, as it is sent through a pipe."""

    layer: int
    tokens: int
    offsets: tuple[int, ...]  # [experts + 1]: the rows of expert e are offsets[e] to offsets[e + 1]

    def pack(self) -> bytes:
        """As little-endian int32."""
        return struct.pack(f"<{len(self.offsets) + 2}i", self.layer, self.tokens, *self.offsets)

    @classmethod
    def unpack(cls, data: bytes) -> Job:
        """The reverse of `pack`."""
        layer, tokens, *offsets = struct.unpack(f"<{len(data) // 4}i", data)
        return cls(layer, tokens, tuple(offsets))


def compute(job: Job, rank: int, shard: Shard, exchange: Exchange) -> None:
    """Write rank `rank`'s partial output of the job's tokens."""
    out = exchange.partial[rank, : job.tokens]
    out[:] = 0
    for i, expert in enumerate(shard.experts):
        gate_up, down = shard.gate_up[job.layer, i], shard.down[job.layer, i]
        for row in range(job.offsets[expert], job.offsets[expert + 1], ROW_BLOCK):
            rows = slice(row, min(row + ROW_BLOCK, job.offsets[expert + 1]))
            tokens = exchange.tokens[rows]
            # An expert gets a token at most once, so no index repeats and += adds every row.
            out[tokens] += exchange.mix[rows, None] * swiglu(
                exchange.x.take(tokens, axis=0), gate_up, down
            )


def swiglu(x: Floats, gate_up: Floats, down: Floats) -> Floats:
    """(silu(x gate) * (x up)) down; x [n, hidden], gate_up [hidden, 2 width], down [width,
    hidden]."""
    both: Floats = x @ gate_up
    gate, up = both[:, : len(down)], both[:, len(down) :]
    activation = np.exp(-gate)
    activation += 1
    np.divide(gate, activation, out=activation)
    activation *= up
    out: Floats = activation @ down
    return out


class RankDiedError(Exception):
    """A rank has died, so the model cannot run."""


@dataclass(frozen=True, slots=True)
class RankProcess:
    """A forked rank: jobs go in through one pipe, one byte per finished job returns by another."""

    rank: int
    pid: int
    jobs: int
    done: int

    def send(self, message: bytes) -> None:
        """Send it a job. RankDiedError if it has died."""
        try:
            os.write(self.jobs, message)
        except BrokenPipeError:
            raise self.death() from None

    def wait(self) -> None:
        """Wait until its job is done. RankDiedError if it has died."""
        if not os.read(self.done, 1):
            raise self.death()

    def death(self) -> RankDiedError:
        """Wait for its end and say how it died; the process stays to be reaped."""
        how = "has died"
        if sys.platform == "linux" and (
            end := os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        ):
            killed = end.si_code != os.CLD_EXITED
            how = (
                f"was ended by {signal.Signals(end.si_status).name}"
                if killed
                else f"exited ({end.si_status})"
            )
        return RankDiedError(f"rank {self.rank} (process {self.pid}) {how}")


class Ranks:
    """The ranks of one layout. Call it with a layer's input; `close()` ends the processes."""

    def __init__(self, shape: Shape, weights: Weights, layout: Layout, max_tokens: int) -> None:
        layout.check(shape)
        self.shape, self.layout = shape, layout
        self._exchange = Exchange.allocate(shape, layout.ranks, max_tokens)
        self._shard = Shard.of(weights, layout, 0)
        self._processes: list[RankProcess] = []
        for rank in range(1, layout.ranks):
            self._processes.append(self._fork(rank, Shard.of(weights, layout, rank)))
        self._watcher: Thread | None = None

    def __call__(self, layer: int, x: Floats, chosen: Ints, mix: Floats) -> Floats:
        """x [n, hidden], chosen and mix [n, top_k] → Σ_k mix · expert(x) [n, hidden]."""
        job = self._dispatch(layer, x, chosen, mix)
        message = job.pack()
        for process in self._processes:
            process.send(message)
        compute(job, 0, self._shard, self._exchange)
        for process in self._processes:
            process.wait()
        total: Floats = self._exchange.partial[:, : len(x)].sum(axis=0)
        return total

    def watch(self, on_death: Callable[[RankDiedError], object]) -> None:
        """Call `on_death`, in a thread, as soon as a rank dies, even between two jobs."""
        if self._processes:
            self._watcher = Thread(target=self._watch, args=(on_death,), name="ranks", daemon=True)
            self._watcher.start()

    def _watch(self, on_death: Callable[[RankDiedError], object]) -> None:
        poll = select.poll()
        for process in self._processes:
            poll.register(process.done, 0)  # the only event is that the other end closes
        ended = {fd for fd, _ in poll.poll()}
        for process in self._processes:  # none after close(): it ends them on purpose
            if process.done in ended:
                on_death(process.death())

    def close(self) -> None:
        """Close the pipes, which ends the processes, and wait for them. A second call does
        nothing."""
        processes, self._processes = self._processes, []
        for process in processes:
            os.close(process.jobs)
        if self._watcher:
            self._watcher.join()
        for process in processes:
            os.waitpid(process.pid, 0)
            os.close(process.done)

    def _dispatch(self, layer: int, x: Floats, chosen: Ints, mix: Floats) -> Job:
        """Write the layer's input to the shared memory, in the ranks' order."""
        order = np.argsort(chosen, axis=None, kind="stable")
        self._exchange.x[: len(x)] = x
        self._exchange.tokens[: len(order)] = order // self.shape.top_k
        self._exchange.mix[: len(order)] = mix.ravel()[order]
        ends = np.bincount(chosen.ravel(), minlength=self.shape.experts).cumsum()
        return Job(layer, len(x), (0, *ends.tolist()))

    def _fork(self, rank: int, shard: Shard) -> RankProcess:
        jobs_out, jobs_in = os.pipe()
        done_out, done_in = os.pipe()
        pid = os.fork()
        if pid == 0:
            # A pipe's end left open here would keep a sibling from seeing that the parent is gone.
            for end in (jobs_in, done_out, *(e for p in self._processes for e in (p.jobs, p.done))):
                os.close(end)
            work = partial(compute, rank=rank, shard=shard, exchange=self._exchange)
            _run_rank(jobs_out, done_in, work)
        os.close(jobs_out)
        os.close(done_in)
        return RankProcess(rank, pid, jobs_in, done_out)


def _run_rank(jobs: int, done: int, work: Callable[[Job], None]) -> NoReturn:
    """Run jobs until the pipe ends: the parent has closed it, or is gone."""
    status = 1
    try:
        # Signals to the process group are for the parent to handle, not for a rank.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        while message := os.read(jobs, select.PIPE_BUF):
            work(Job.unpack(message))
            os.write(done, b".")
        status = 0
    except BrokenPipeError:  # the parent died during a job
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # not sys.exit, which would run the parent's cleanup
