"""Which experts the padding rows of a replay's steps woke: the sets that explain the steps' times.

    uv run python bench/backends/padding.py CALIBRATED RUN_DIR BACKEND LABEL…

CUDA graphs run 30 tokens as 32; the two rows more are routed, and no log has them. They hold the
same tokens in every step, so they would choose the same experts. For every set of up to 4 experts,
active in every layer and step besides the log's: how far the priced steps are from the measured
ones (rms, ms), with one offset, that of the first label. Name a fair router's run first: there all
experts are active whatever padding does.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.analysis import calibration
from core.analysis.calibration import Calibration
from core.routing import work
from core.routing.folder import GateFolder, starts
from core.routing.price import Prices
from core.stats.arrays import Floats

ROWS, CHOICES = 32, 4  # of the graph; of its two rows of padding
SKIPPED = 5  # first steps of a run


def steps(folder: Path, backend: str, label: str) -> tuple[Floats, Floats]:
    """Loads [steps, layers, experts] and durations in ms of a run's decode steps."""
    loads, took = [], []
    for log in GateFolder(starts(folder / backend)[0]).blocks():
        own = log.segments.get(label, np.zeros(len(log.tokens))) == log.tokens
        own &= (log.tokens > 0) & (log.columns["prefill_tokens"] == 0)
        loads.append(log.loads[own].astype(np.float64))
        took.append(log.columns["duration_ns"][own] / 1e6)
    return np.concatenate(loads)[SKIPPED:], np.concatenate(took)[SKIPPED:]


def priced(loads: Floats, woken: tuple[int, ...], prices: Prices, found: Calibration) -> Floats:
    """[steps], ms."""
    more = loads.copy()
    for expert in woken:
        more[:, :, expert] += CHOICES / len(woken)
    rows = np.full(len(loads), ROWS)
    us = prices.us(work.of_steps(np.rint(more), rows, (), prices.kernel), rows)
    cost = {name: term.value or 0.0 for name, term in found.decode.terms.items()}
    tokens = loads[:, 0].sum(axis=1) / prices.kernel.top_k
    price = us.reshape(len(loads), -1).sum(axis=1) * cost["price_us"]
    return np.asarray((cost["fixed"] + cost["requests"] * tokens + price) / 1e3)


def main() -> None:
    if len(sys.argv) < 5:
        raise SystemExit(__doc__)
    found = calibration.read(Path(sys.argv[1]))
    prices, folder, backend, offset = found.prices(), Path(sys.argv[2]), sys.argv[3], None
    assert prices
    experts = range(prices.kernel.experts)
    sets = [s for size in range(CHOICES + 1) for s in itertools.combinations(experts, size)]
    for label in sys.argv[4:]:
        loads, took = steps(folder, backend, label)
        said = {woken: priced(loads, woken, prices, found) for woken in sets}
        if offset is None:
            offset = float(np.median(took - said[()]))
        rms = {w: float(np.sqrt(((x + offset - took) ** 2).mean())) for w, x in said.items()}
        best = sorted(sets, key=lambda woken: rms[woken])[:3]
        shown = ", ".join(f"{' '.join(map(str, one)) or 'none'}: {rms[one]:.2f}" for one in best)
        print(
            f"{label:22} {len(took)} steps, {took.mean():.2f} ms; none woken: {rms[()]:.2f};"
            f" best {shown}"
        )


if __name__ == "__main__":
    main()
