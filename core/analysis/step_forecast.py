"""How long planned steps take: what is expected of the router, by a backend's cost model.

Prompts are sent in waves, as many at once as the backend runs. TTFT: each waits for the prefill
steps up to its own. TPOT: the decode steps of its wave. What is outside the engine's steps is in
neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from msgspec import structs

from core.analysis import step_work
from core.analysis.calibration import Calibration
from core.analysis.cost_model import CostModel
from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing import expected
from core.routing.expected import Expected, Forecast, Planned
from core.stats.arrays import Floats, Ints

DRAWS = 64  # decode steps


@dataclass(frozen=True, slots=True)
class Timer:
    """A backend's calibration, the kernel of its experts, its EP ranks (linear placement; 1: no
    expert parallelism), and the tokens that it answers."""

    known: Calibration
    kernel: Kernel | None
    ranks: int
    output_len: int

    def timed(
        self, of: Expected, prompts: Forecast, decode_shares: Floats | None, planned: Planned
    ) -> Expected:
        """With the times of its steps."""
        models = (self.known.prefill, self.known.decode)
        why = "; ".join(f"{m.phase}: no cost model: {m.reason}" for m in models if m.reason)
        of = structs.replace(of, times_reason=why or None)
        if not self.known.prefill.reason:
            step, ttft = self._prefill_ms(prompts, planned)
            of = structs.replace(
                of, prefill=structs.replace(of.prefill, step_ms=step), ttft_ms=ttft
            )
        if of.decode is None or decode_shares is None or self.known.decode.reason:
            return of
        context = float(prompts.tokens.mean()) + self.output_len / 2
        waves = {planned.decode: len(prompts.tokens) // planned.decode}
        waves[len(prompts.tokens) % planned.decode] = 1
        waves = {requests: count for requests, count in waves.items() if requests and count}
        times = [self._decode_ms(decode_shares, prompts.top_k, n, context) for n in waves]
        counts = np.array(list(waves.values()))
        step = float(np.average(times, weights=counts))
        tpot = float(np.average(times, weights=counts * list(waves)))
        return structs.replace(of, decode=structs.replace(of.decode, step_ms=step), tpot_ms=tpot)

    def _prefill_ms(self, prompts: Forecast, planned: Planned) -> tuple[float, float]:
        """Mean step, and mean TTFT; prompts that are sent at once are prefilled in order."""
        steps, ends = [], []
        for place in range(0, len(prompts.tokens), planned.decode):
            wave = prompts.of(slice(place, place + planned.decode))
            first = expected.firsts(wave.tokens, planned)
            count, of = np.diff(first, append=len(wave.tokens)), wave.joined(first)
            batch = {"requests": count, "context": of.tokens, "prefill_tokens": of.tokens}
            steps.append(self._ms("prefill", np.rint(of.loads), of.tokens, batch))
            ends.append(np.repeat(np.cumsum(steps[-1]), count))
        return float(np.concatenate(steps).mean()), float(np.concatenate(ends).mean())

    def _decode_ms(self, shares: Floats, top_k: int, requests: int, context: float) -> float:
        """A mean decode step whose tokens pick experts by `shares` [layers, experts]; `context`:
        tokens that a request holds."""
        tokens = np.full(DRAWS, requests)
        batch = {"requests": tokens, "context": tokens * context}
        return float(self._ms("decode", _drawn(shares, top_k, requests), tokens, batch).mean())

    def _ms(
        self, phase: str, loads: Floats, tokens: Ints, batch: Mapping[str, Floats | Ints]
    ) -> Floats:
        """[steps], of `loads` [steps, layers, experts]."""
        model, prices = self.known.model(phase), self.known.prices()
        kernel, experts = prices.kernel if prices else self.kernel, loads.shape[-1]
        home = () if self.ranks < 2 else tuple(np.arange(experts) * self.ranks // experts)
        figures = step_work.of_loads(loads, tokens, home, kernel, prices).sum(axis=1)
        total = model.cost_us(figures, tokens, kernel) + _term(model, "fixed")
        for name, values in batch.items():
            total = total + _term(model, name) * values
        return np.asarray(total / 1e3)


def _term(model: CostModel, name: str) -> float:
    return (model.terms[name].value or 0.0) if name in model.terms else 0.0


def _drawn(shares: Floats, top_k: int, tokens: int) -> Floats:
    """Loads of steps whose tokens pick `top_k` experts each, an expert with top_k times its share
    (systematic sampling) [DRAWS, layers, experts]."""
    random = np.random.default_rng(0)
    ends = np.cumsum(np.minimum(shares * top_k, 1.0), axis=-1)
    ends *= top_k / ends[:, -1:]
    loads = np.empty((DRAWS, *shares.shape))
    for layer, end in enumerate(ends):
        passed = np.floor(end + random.random((DRAWS, tokens, 1)))
        loads[:, layer] = np.diff(passed, axis=-1, prepend=0.0).sum(axis=1)
    return loads
