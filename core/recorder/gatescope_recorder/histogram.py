"""ids [layers, rows, top_k] → counts [layers, experts + 1], once a step, on the device the ids are on.

The last bin counts what is no expert: rows that no router wrote. Rows that were read are set back to that value.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Histogram = Callable[[torch.Tensor, int], None]


def on(ids: torch.Tensor, experts: int) -> Histogram:
    """A function (out, tokens) that counts the first `tokens` rows of every layer into `out` and resets them.

    `out` may be pinned host memory: the copy is then enqueued behind the count and nothing waits for it.
    """
    if ids.device.type == "cuda":
        try:
            return _fused(ids, experts)
        except ImportError:  # no Triton: the same in five small kernels
            pass
    return _plain(ids, experts)


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
