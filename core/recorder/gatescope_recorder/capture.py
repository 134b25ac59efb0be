"""The static buffer that the taps write and the histogram reads: ids[layer, row, k].

CUDA graphs replay the writes without Python, so a tap only copies. After each histogram the rows
that were read hold `experts`, which is not the id of an expert: a row that no router writes in the
next step is then detected, and never counted as the last step's choice.
"""

from __future__ import annotations

from typing import Any

import torch

from . import histogram
from .routers import Tap


class Capture:
    """ids [layers, max tokens, top_k], int32, on the model's device."""

    def __init__(
        self, layers: int, tokens: int, top_k: int, experts: int, device: torch.device
    ) -> None:
        self.experts = experts
        # One row more than any pass has: if a pass filled the buffer, torch.compile would
        # specialise on its size.
        self.ids = torch.full(
            (layers, tokens + 1, top_k), experts, dtype=torch.int32, device=device
        )
        # built before the warm-up: vLLM warns of kernels that are built after it
        self.histogram = histogram.on(self.ids, experts)
        # of the warm-up's forward passes: rows seen, and tokens of every DP rank
        self.rows: list[tuple[int, Any]] = []
        self.warming_up = True
        self.error = ""

    def tap(self, layer: int) -> Tap:
        """The function that this layer's router calls. It can be traced: torch.compile inlines it
        where the MoE op is not opaque."""
        ids, limit = self.ids[layer], self.ids.shape[1]

        def capture(chosen: torch.Tensor) -> None:
            if torch.compiler.is_compiling():
                ids[: chosen.shape[0]].copy_(chosen)
                return
            try:
                ids[: chosen.shape[0]].copy_(chosen[:limit])
                if self.warming_up:
                    self._note_rows(chosen.shape[0])
            except Exception as error:  # recording may fail, the engine must not
                self.error = self.error or f"layer {layer}: {type(error).__name__}: {error}"

        return capture

    def clear(self, tokens: int) -> None:
        """Before a pass whose predecessor was not counted, and so left its choice in the rows."""
        self.ids[:, :tokens].fill_(self.experts)

    def _note_rows(self, rows: int) -> None:
        from vllm.forward_context import get_forward_context, is_forward_context_available

        metadata = get_forward_context().dp_metadata if is_forward_context_available() else None
        across = getattr(metadata, "num_tokens_across_dp_cpu", None)
        if across is not None and len(self.rows) < 4096:
            self.rows.append((rows, across.tolist()))

    def foreign_rows(self, dp: int) -> str:
        """Why the rows are not this rank's own tokens; empty if no forward pass of the warm-up
        showed that."""
        for rows, across in self.rows:
            if rows != across[dp]:
                own = f"this rank's batch has {across[dp]} (all ranks: {across})"
                return f"a router saw {rows} rows where {own}"
        return ""
