"""What is recorded about every request, and about the client that sent it.

Load workers import this module, so NumPy is imported only where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KERNEL_STAMPS = "kernel receive time (SO_TIMESTAMPNS)"
USER_STAMPS = "user space, at read"


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request; times are perf_counter nanoseconds of this machine, 0 if it did not get so far.

    t_due: when the schedule wanted it; t_start: when the client turned to it; t_sent: just before
    the send that took its last byte; t_first_byte: first byte of the answer. `stamps_ns[i]`: when
    token event i arrived; it carried `event_tokens[i]` tokens. `output_tokens_from` says who
    counted the tokens: "usage", "tokenizer" (the server's /tokenize) or "events" (one token each).
    `visible_tokens`: those of events with text. Counts that nobody gave are None.
    """

    index: int
    prompt_id: str
    t_due_ns: int
    t_start_ns: int
    t_sent_ns: int
    t_done_ns: int
    t_first_byte_ns: int = 0
    stamps_ns: Sequence[int] = ()
    event_tokens: Sequence[int] = ()
    prompt_tokens: int | None = None
    output_tokens: int = 0
    visible_tokens: int | None = None
    output_tokens_from: str = "usage"
    text: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error

    @property
    def ttft_s(self) -> float:
        return (self.stamps_ns[0] - self.t_sent_ns) / 1e9

    @property
    def ttft_from_due_s(self) -> float:
        return (self.stamps_ns[0] - self.t_due_ns) / 1e9

    @property
    def is_uncounted_text(self) -> bool:
        """Whether nobody counted its tokens, and all of them came with text."""
        return self.output_tokens_from == "events" and self.visible_tokens == self.output_tokens

    def tokenized(self, tokens: int) -> RequestRecord:
        """This record, its text's tokens counted by a tokenizer."""
        return replace(
            self, output_tokens=tokens, visible_tokens=tokens, output_tokens_from="tokenizer"
        )

    @property
    def is_seen(self) -> bool:
        """Whether the events show every token; else the others' times are unknown."""
        tokens = self.event_tokens
        return self.output_tokens <= len(tokens) or self.output_tokens <= sum(tokens)

    @property
    def is_end_seen(self) -> bool:
        """Whether the last event brought the last token, as far as is known: a tokenizer counts
        only what came as text."""
        return self.output_tokens_from == "tokenizer" or self.is_seen

    @property
    def is_one_piece(self) -> bool:
        """Whether several tokens came, and all at one time."""
        return (
            self.output_tokens > 1 and self.is_end_seen and self.stamps_ns[0] == self.stamps_ns[-1]
        )

    @property
    def e2e_s(self) -> float | None:
        return (self.stamps_ns[-1] - self.t_sent_ns) / 1e9 if self.is_end_seen else None

    @property
    def e2e_from_due_s(self) -> float | None:
        return (self.stamps_ns[-1] - self.t_due_ns) / 1e9 if self.is_end_seen else None

    @property
    def tpot_s(self) -> float | None:
        """None if it has no meaning (one token) or is unknown."""
        if not self.stamps_ns or self.is_one_piece or not self.is_seen:
            return None
        later = self.output_tokens - self.event_tokens[0]
        return (self.stamps_ns[-1] - self.stamps_ns[0]) / 1e9 / later if later > 0 else None

    @property
    def itls_s(self) -> list[float]:
        """Gaps in seconds, one per token after the first event; none if they are unknown."""
        import numpy as np

        if not self.stamps_ns or self.is_one_piece or not self.is_seen:
            return []
        tokens = np.asarray(self.event_tokens[1:], dtype=np.int64)
        gaps: list[float] = np.repeat(np.diff(self.stamps_ns) / 1e9 / tokens, tokens).tolist()
        return gaps

    @property
    def events_per_read(self) -> list[int]:
        """Token events of each read, from their stamps: events of one read share one stamp."""
        counts: list[int] = events_per_read([self]).tolist()
        return counts


def itls_s(records: Sequence[RequestRecord]) -> NDArray[np.float64]:
    """RequestRecord.itls_s of all records, concatenated."""
    import numpy as np

    records = [r for r in records if r.stamps_ns and not r.is_one_piece and r.is_seen]
    stamps, begins = _stamps(records)
    tokens = _joined([r.event_tokens for r in records])[~begins]
    gaps = np.diff(stamps)[~begins[1:]]
    return np.repeat(gaps / 1e9 / tokens, tokens)


def events_per_read(records: Sequence[RequestRecord]) -> NDArray[np.int64]:
    """Token events of each read of many records."""
    import numpy as np

    stamps, begins = _stamps(records)
    begins[1:] |= np.diff(stamps) != 0
    return np.diff(np.flatnonzero(begins), append=len(stamps))


def _stamps(records: Sequence[RequestRecord]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Every stamp, and whether it is the first of its record."""
    import numpy as np

    stamps = _joined([r.stamps_ns for r in records])
    begins = np.zeros(len(stamps), dtype=np.bool_)
    begins[np.cumsum([0, *(len(r.stamps_ns) for r in records if r.stamps_ns)])[:-1]] = True
    return stamps, begins


def _joined(numbers: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    import numpy as np

    return np.concatenate([np.zeros(0, np.int64), *(np.asarray(n, np.int64) for n in numbers)])


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load has come.

    Requests in flight are `sent` - `done` - `errors`. `sent` includes requests that found no
    server, but not those that are not due yet. What arrived since the last report: the TTFTs of
    the requests whose first token it was, and a bounded sample of the gaps between tokens.
    """

    sent: int = 0
    first_tokens: int = 0  # requests with a first token
    output_tokens: int = 0
    done: int = 0
    errors: int = 0
    ttfts_ns: tuple[int, ...] = ()
    gaps_ns: tuple[int, ...] = ()

    @property
    def kinds(self) -> int:
        """How many kinds of latency it tells of: none, TTFTs, or gaps too."""
        return bool(self.first_tokens) + bool(self.gaps_ns)

    def __add__(self, other: Progress) -> Progress:
        return Progress(
            self.sent + other.sent,
            self.first_tokens + other.first_tokens,
            self.output_tokens + other.output_tokens,
            self.done + other.done,
            self.errors + other.errors,
            self.ttfts_ns + other.ttfts_ns,
            self.gaps_ns + other.gaps_ns,
        )

    def reported(self) -> Progress:
        """The same counts, with nothing left to report."""
        return replace(self, ttfts_ns=(), gaps_ns=())


@dataclass(frozen=True, slots=True)
class Lag:
    """How late something was, in milliseconds; None if it was never measured."""

    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    @classmethod
    def of(cls, lags_ns: Sequence[int]) -> Lag:
        """Percentiles by rank: no values are interpolated."""
        if not lags_ns:
            return cls(None, None, None)
        ordered = sorted(lags_ns)
        p50, p99 = (ordered[int(q * len(ordered))] for q in (0.5, 0.99))
        return cls(p50 / 1e6, p99 / 1e6, ordered[-1] / 1e6)


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """What one load worker reports about itself, over the window that it measured."""

    reads: int
    stamped_reads: int  # with a kernel timestamp
    loop_lags_ns: tuple[int, ...]
    start_lags_ns: tuple[int, ...]  # start - the moment at which a request was due and had a slot
    cpu_s: float
    wall_s: float
    connections: int
    retries: int  # requests sent again because a kept connection had been closed
    clock_steps: int  # jumps of the wall clock, on which kernel timestamps are based


class Records(list[RequestRecord]):
    """The records of a load in dataset order, and its workers' reports about themselves."""

    def __init__(
        self, records: Iterable[RequestRecord] = (), workers: Sequence[WorkerHealth] = ()
    ) -> None:
        super().__init__(records)
        self.workers = tuple(workers)

    def __repr__(self) -> str:
        """Short: asyncio makes a repr of every task's result."""
        return f"Records of {len(self)} requests"
