"""Continuous batching as in vLLM's V1 engine: which sequences are in the next step, with how many
tokens.

Running sequences come first, in order of arrival; waiting ones get the rest of the step's tokens. A
prompt longer than that is split into chunks over several steps. Only the newest running sequence
can be inside its prompt, since a split prompt leaves no tokens for the next sequence: no decode
ever waits for a prefill.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import numpy as np

from core.builtin.sampler import Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """What a client requested. `segment` labels its tokens in the gate log."""

    id: str
    segment: str
    prompt: tuple[int, ...]
    sampling: Sampling


class Sequence:
    """A request in progress: its tokens so far, and how many of them are in the cache."""

    __slots__ = (
        "arrived_s",
        "computed",
        "last_token_s",
        "random",
        "request",
        "sent",
        "slot",
        "text",
        "tokens",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.tokens = list(request.prompt)  # the prompt, then the generated tokens
        self.computed = 0  # tokens whose keys and values are in the cache
        self.slot = -1  # the cache's slot; -1 while waiting
        self.text = ""  # generated so far; only kept if there are stop strings
        self.sent = 0  # characters of `text` that were delivered
        self.random = np.random.default_rng(request.sampling.seed)
        self.arrived_s = perf_counter()
        self.last_token_s = self.arrived_s  # time of the latest token; until then of the arrival

    @property
    def remaining(self) -> int:
        """Tokens that the model must process before the next one can be drawn."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens drawn so far."""
        return len(self.tokens) - len(self.request.prompt)


class Chunk(NamedTuple):
    """A sequence's share of a step: its next `tokens` tokens."""

    sequence: Sequence
    tokens: int

    @property
    def completes(self) -> bool:
        """Whether the sequence's next token is drawn after the step."""
        return self.tokens == self.sequence.remaining

    @property
    def prefill(self) -> int:
        """Number of tokens that belong to the prompt."""
        left = len(self.sequence.request.prompt) - self.sequence.computed
        return max(0, min(self.tokens, left))


Step = list[Chunk]


class Scheduler:
    """The queues of one engine, and the free slots of its cache."""

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        if not 1 <= max_num_seqs <= max_num_batched_tokens:
            raise ValueError(
                f"max_num_batched_tokens ({max_num_batched_tokens}) must be at least max_num_seqs "
                f"({max_num_seqs}), and that at least 1: every running sequence takes a token per "
                "step"
            )
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._free = list(range(max_num_seqs))

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.running and not self.waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """The next step; empty when idle. Moves sequences from waiting to running."""
        budget = self.max_num_batched_tokens
        step: Step = []
        for sequence in self.running:
            if budget:
                step.append(Chunk(sequence, min(sequence.remaining, budget)))
                budget -= step[-1].tokens
        while self.waiting and self._free and budget:
            sequence = self._admit()
            step.append(Chunk(sequence, min(sequence.remaining, budget)))
            budget -= step[-1].tokens
        return step

    def remove(self, sequence: Sequence) -> bool:
        """Remove a finished or aborted sequence and free its slot. False if it is not here, or no
        longer."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return True
        if sequence not in self.running:
            return False
        self.running.remove(sequence)
        heapq.heappush(self._free, sequence.slot)
        return True

    def _admit(self) -> Sequence:
        """Start the longest-waiting sequence, in the lowest free slot: attention is faster over
        adjacent slots."""
        sequence = self.waiting.popleft()
        sequence.slot = heapq.heappop(self._free)
        self.running.append(sequence)
        return sequence
