"""Counts ids [layers, rows, top_k] → [layers, experts + 1], once per step, on the ids' own device.

The last bin counts ids that are not of an expert: rows that no router wrote. Rows that were read
are reset to that value.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

Histogram = Callable[[torch.Tensor, int], None]

log = logging.getLogger("vllm.gatescope_recorder")


def on(ids: torch.Tensor, experts: int) -> Histogram:
    """A function (out, tokens) that counts the first `tokens` rows of every layer into `out` and
    resets them.

    `out` may be pinned host memory: the copy is then queued behind the count, and nothing waits for
    it.
    """
    if ids.device.type == "cuda":
        try:
            return _proven(_fused(ids, experts), ids, experts)
        except Exception as error:  # no Triton, or one that does not support this GPU
            log.warning(
                "gatescope recorder: the fused histogram does not work here, using the plain one:"
                " %s",
                error,
            )
    return _plain(ids, experts)


def _proven(histogram: Histogram, ids: torch.Tensor, experts: int) -> Histogram:
    """The same function, after it has built its kernel and counted a known pattern. RuntimeError if
    the counts are wrong."""
    layers, tokens, top_k = ids.shape
    pattern = torch.arange(layers * tokens * top_k, device=ids.device) % (experts + 1)
    ids.copy_(pattern.view_as(ids))
    want = torch.stack(
        [torch.bincount(row, minlength=experts + 1) for row in pattern.view(layers, -1)]
    )
    out = torch.zeros(layers, experts + 1, dtype=torch.int32, device=ids.device)
    histogram(out, tokens)
    if not torch.equal(out.long(), want) or not bool((ids == experts).all()):
        raise RuntimeError("it miscounts a known pattern")
    return histogram


def _plain(ids: torch.Tensor, experts: int) -> Histogram:
    layers, bins = ids.shape[0], experts + 1
    counts = torch.zeros(layers, bins, dtype=torch.int32, device=ids.device)
    first = (torch.arange(layers, device=ids.device) * bins).view(layers, 1, 1)
    one = torch.ones(1, dtype=torch.int32, device=ids.device)

    def histogram(out: torch.Tensor, tokens: int) -> None:
        rows = ids[:, :tokens]
        known = torch.where((rows >= 0) & (rows < experts), rows, experts)
        places = (known + first).reshape(-1)
        counts.zero_().view(-1).scatter_add_(0, places, one.expand(places.numel()))
        rows.fill_(experts)
        out.copy_(counts, non_blocking=True)

    return histogram


def _fused(ids: torch.Tensor, experts: int) -> Histogram:
    from .triton_histogram import count

    counts = torch.empty(ids.shape[0], experts + 1, dtype=torch.int32, device=ids.device)

    def histogram(out: torch.Tensor, tokens: int) -> None:
        count(ids, counts, tokens)
        out.copy_(counts, non_blocking=True)

    return histogram
