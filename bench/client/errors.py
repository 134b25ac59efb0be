"""What a client reports that it saw, against what truth_server.py knows that it sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOGETHER_MS = 0.05  # Python clients stamp the events of one read a few µs apart


@dataclass(frozen=True)
class Row:
    """One request as a client reports it, in seconds. `key`: its prompt, the first four letters of
    its answer, or the number at the end of its request ID."""

    key: str | int
    ttft: float
    itl: list[float] | None  # None: the client keeps no gaps


@dataclass(frozen=True)
class Errors:
    """Absolute errors in ms: (median, p99). For TTFT, what the client adds to the time from the
    request's arrival to the first send.

    `ttft` counts from when the server's kernel had the request. `ttft_read` counts from when the
    server had read it, so that the server's own queue in a burst counts as the client's fault.
    `itl_own`: gaps between events that were read alone.
    """

    requests: int
    missing: int
    ttft: tuple[float, float]
    ttft_read: tuple[float, float]
    itl: tuple[float, float]
    itl_own: tuple[float, float]
    shared_share: float  # events that were read together with a later one


def errors(truth: list[dict[str, Any]], rows: list[Row]) -> Errors:
    """Match and compare. A stream that the client did not see completely counts as missing."""
    sent: dict[str | int, dict[str, Any]] = {}
    for request in truth:
        if request["end"] == "done":
            sent[request["prompt_head"]] = sent[request["answer_head"]] = request
            if request["id"] and request["id"].startswith("bench-"):
                sent[int(request["id"].rsplit("-")[-1])] = request
    ttft, ttft_read, itl, own, shared = [], [], [], [], []
    for row in rows:
        server = sent.get(row.key if isinstance(row.key, int) else row.key[:64])
        if server is None or (row.itl is not None and len(row.itl) != len(server["t_send"]) - 1):
            continue
        first = server["t_send"][0]
        ttft.append(row.ttft * 1e3 - (first - server["t_arrived"]) / 1e6)
        ttft_read.append(row.ttft * 1e3 - (first - server["t_request"]) / 1e6)
        if row.itl is None:
            continue
        gaps = np.diff(np.array(server["t_send"])) / 1e6
        mine = np.array(row.itl) * 1e3
        together = np.append(mine < TOGETHER_MS, False)  # event k was read with event k + 1
        itl.append(np.abs(mine - gaps))
        own.append(np.abs(mine - gaps)[~together[:-1] & ~together[1:]])
        shared.append(together.mean())
    return Errors(
        requests=len(ttft),
        missing=len(rows) - len(ttft),
        ttft=_quantiles(np.array(ttft)),
        ttft_read=_quantiles(np.array(ttft_read)),
        itl=_quantiles(np.concatenate([[], *itl])),
        itl_own=_quantiles(np.concatenate([[], *own])),
        shared_share=float(np.mean(shared)) if shared else float("nan"),
    )


@dataclass(frozen=True)
class Delivery:
    """The load that arrived, as shares of what this many streams offer when none is ever idle and
    every token leaves when it is due.

    `client`: the share of its slots' time in which a request was with the server. `server`: the
    share of that time that the schedule asked for; the rest is the server's own lateness.
    """

    client: float
    server: float


def delivery(truth: list[dict[str, Any]], concurrency: int) -> Delivery:
    """Compute it from the server's times alone. Which request took whose slot does not matter: the
    sums are the same."""
    done = [r for r in truth if r["end"] == "done"]
    arrived, ended = (sorted(r[name] for r in done) for name in ("t_arrived", "t_done"))
    idle = sum(arrived[concurrency:]) - sum(ended[: len(done) - concurrency])
    # The first request of each slot counts from the first of all.
    idle += sum(arrived[:concurrency]) - concurrency * arrived[0]
    with_server = sum(ended) - sum(arrived)
    asked = sum(r["t_due"][-1] - r["t_request"] for r in done)
    return Delivery(with_server / (with_server + idle), asked / with_server)


def _quantiles(values: NDArray[np.float64]) -> tuple[float, float]:
    if not values.size:
        return float("nan"), float("nan")
    return float(np.median(np.abs(values))), float(np.percentile(np.abs(values), 99))
