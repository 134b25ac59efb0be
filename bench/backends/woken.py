"""Which experts the rows of padding woke, as padding_probe saw it, and what that cost.

    uv run python bench/backends/woken.py CALIBRATED RUN_DIR

For every run whose decode steps CUDA graphs pad: rows of padding; experts that a layer leaves idle;
how many of them the padding woke, and their share; and the median decode step, measured and as the
calibrated model predicts it: with none woken, with all that can be, and with those that were.
"""

from __future__ import annotations

import lzma
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.analysis import calibration, step_work
from core.analysis.calibration import Calibration
from core.experiment import dose
from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing import work
from core.routing.folder import GateFolder
from core.routing.gatelog import GateLog
from core.routing.price import Prices
from core.stats.arrays import Floats, Ints

ENOUGH = 20  # steps
SKIPPED = 3  # steps of a run: some of its requests may still be in prefill


@dataclass(frozen=True, slots=True)
class Seen:
    """Decode steps of one run. `padded` [steps, layers, experts]: choices of the padding rows."""

    loads: Ints
    padded: Ints
    took_us: Floats
    tokens: Ints
    rows: Ints

    @property
    def idle(self) -> Floats:
        return np.asarray((self.loads == 0).sum(axis=2))

    @property
    def woken(self) -> Floats:
        return np.asarray(((self.loads == 0) & (self.padded > 0)).sum(axis=2))


def probed(file: Path) -> dict[int, Ints]:
    """Step index → [layers, rows, top_k]."""
    found: dict[int, Ints] = {}
    with lzma.open(file) if file.suffix == ".xz" else file.open("rb") as stream:
        while stream.peek(1):
            steps, ids = np.load(stream), np.load(stream)
            found |= {int(index): one for (index, _), one in zip(steps, ids, strict=True)}
    return found


def seen(log: GateLog, probe: dict[int, Ints], kernel: Kernel, label: str) -> Seen | None:
    own = log.of(label)
    decode = np.flatnonzero(own.columns["prefill_tokens"] == 0)[SKIPPED:]
    rows = np.array([kernel.padding(int(own.tokens[place])) for place in decode], np.int64)
    kept = [
        (place, n)
        for place, n in zip(decode, rows, strict=True)
        if n and int(own.columns["index"][place]) in probe
    ]
    if not kept:
        return None
    places, experts = np.array([place for place, _ in kept]), own.loads.shape[2]
    padded = np.zeros((len(kept), *own.loads.shape[1:]), np.int64)
    for number, (place, n) in enumerate(kept):
        ids = probe[int(own.columns["index"][place])][:, :n].astype(np.int64)
        for layer, chosen in enumerate(ids.reshape(len(ids), -1)):
            padded[number, layer] = np.bincount(chosen, minlength=experts)[:experts]
    return Seen(
        own.loads[places].astype(np.int64),
        padded,
        own.columns["duration_ns"][places] / 1e3,
        own.tokens[places],
        np.array([n for _, n in kept]),
    )


def predicted(of: Seen, prices: Prices, found: Calibration) -> tuple[float, float, float]:
    """Median ms: with none woken, with all that can be, with those that were."""
    cost = {name: term.value or 0.0 for name, term in found.decode.terms.items()}
    column = step_work.FIGURES.index("price_us")
    none = np.zeros_like(of.rows)
    bounds = [
        step_work.of_loads(of.loads, of.tokens, (), prices.kernel, prices, rows)[..., column]
        for rows in (none, of.rows)
    ]
    whole = of.tokens + of.rows
    real = work.of_steps(of.loads + of.padded, whole, (), prices.kernel)
    each = [*bounds, prices.us(real, whole)[..., 0]]
    rest = cost["fixed"] + cost["requests"] * of.tokens
    ms = [float(np.median(rest + cost["price_us"] * one.sum(axis=1))) / 1e3 for one in each]
    return ms[0], ms[1], ms[2]


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    found, folder = calibration.read(Path(sys.argv[1])), Path(sys.argv[2])
    prices = found.prices()
    assert prices
    print("| run | steps | rows | idle | woken | share | ms | none woken | all woken | as seen |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    shares: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for file in sorted(folder.glob("*/gate_logs*/*.padding*")):
        probe = probed(file)
        for log in GateFolder(file.parent).blocks():
            assert log.kernel
            for label in sorted(log.segments):
                of = seen(log, probe, log.kernel, label)
                if of is None or len(of.rows) < ENOUGH:
                    continue
                idle, woken = float(of.idle.mean()), float(of.woken.mean())
                shares[bool(dose.of_label(label))].append((idle, woken))
                share = f"{woken / idle:.0%}" if idle else "–"
                said = " | ".join(f"{ms:.2f}" for ms in predicted(of, prices, found))
                print(
                    f"| {file.parts[-3]} {label} | {len(of.rows)} | {of.rows.mean():.0f}"
                    f" | {idle:.2f} | {woken:.2f} | {share}"
                    f" | {np.median(of.took_us) / 1e3:.2f} | {said} |"
                )
    for is_forced, rows in shares.items():
        idle, woken = np.sum(rows or [(0, 0)], axis=0)
        kind = "forced and replayed" if is_forced else "natural"
        print(f"{kind}: {len(rows)} runs, {woken:.2f} of {idle:.2f} idle experts woken")


if __name__ == "__main__":
    main()
