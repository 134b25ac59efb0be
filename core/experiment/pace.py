"""How far a run is, and how long the rest takes: by its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from core.experiment.events import Sampled
from core.experiment.state import Live, Snapshot

LEAST_S = 0.95  # a sample covers a second; what is cut off at a run's end belongs to none
KNOWN = 0.01  # share of the tokens from which their rate says something


def of_run(snapshot: Snapshot, run: str) -> list[Sampled]:
    """The samples of a run, each at least a second after the one before."""
    kept: list[Sampled] = []
    for sample in snapshot.samples:
        if sample.run == run and (not kept or sample.at - kept[-1].at >= LEAST_S):
            kept.append(sample)
    return kept


def newest(snapshot: Snapshot, run: str) -> Sampled | None:
    """What was last told of a run."""
    last = snapshot.newest
    return last if last and last.run == run else None


def tokens(live: Live, last: Sampled | None) -> tuple[int, int | None]:
    """Output tokens so far, and how many there will be: what ended requests got, and what the
    others asked for; None where the server decides."""
    done = max(live.output_tokens, last.output_tokens if last else 0)
    if live.output_len is None:
        return done, None
    left = live.requests - live.finished
    return done, max(done, live.output_tokens + left * live.output_len)


def share(live: Live, last: Sampled | None) -> float:
    """How much of a run is done, by its tokens; by its requests where the server decides how many
    tokens there are."""
    done, due = tokens(live, last)
    return live.finished / max(live.requests, 1) if due is None else done / max(due, 1)


def eta_s(live: Live, samples: Sequence[Sampled]) -> float | None:
    """Seconds until the tokens due have come, at the rate of the last ten samples."""
    recent = samples[-11:]
    done, due = tokens(live, recent[-1] if recent else None)
    if due is None or len(recent) < 2 or done < KNOWN * due:
        return None
    first, last = recent[0], recent[-1]
    rate = (last.output_tokens - first.output_tokens) / (last.at - first.at)
    return (due - done) / rate if rate > 0 else None


def left_s(snapshot: Snapshot, now: float) -> float | None:
    """Seconds until all runs have ended: the rest of the one in progress, by its tokens, and the
    queued ones at the mean pace of the finished ones, else at its pace."""
    live, whole = snapshot.live, snapshot.eta_s()
    run = snapshot.runs.get(live.run) if live else None
    left = snapshot.count("queued") + snapshot.count("running")
    if live is None or run is None or not left:
        return whole
    rest = eta_s(live, of_run(snapshot, live.run))
    if rest is None:
        return whole
    pace = now - run.started_at + rest if whole is None else whole / left
    return rest + pace * snapshot.count("queued")
