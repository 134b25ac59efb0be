"""Backends compared, as a batch's last screen shows them. After an intended change:
GATESCOPE_GOLDEN=update pytest, then read the diff."""

from __future__ import annotations

import os
from pathlib import Path

from core.experiment.registration import Registration
from core.report import contrasts
from core.rundir.registered import Registered
from core.stats import comparison
from core.stats.comparison import Comparison
from core.stats.starts import Side

GOLDEN = Path(__file__).parents[1] / "golden" / "findings.txt"
UPDATE = os.environ.get("GATESCOPE_GOLDEN") == "update"
MOVES = (0.0, 0.4, -0.3)  # %, of each start
ASKED = Registration(
    metric="mean_tpot_ms", contrasts=["all2all against baseline"], smallest_effect_pct=2.0
)


def side(effect: float, spread: float, starts: int = 3) -> Side:
    """Two datasets a start, which a restart moves by `spread` × MOVES."""
    return {
        start: {
            f"{2 * start + d:03d}": [(10 + d) * (1 + effect / 100) * (1 + spread * move / 100)]
            for d in (0, 1)
        }
        for start, move in zip(range(1, starts + 1), MOVES, strict=False)
    }


def compared(metric: str, effect: float, spread: float = 1.0, starts: int = 3) -> Comparison:
    sides = (side(0, 0, starts), side(effect, spread, starts))
    return comparison.compare(metric, "baseline", "all2all", sides)


def test_every_verdict_on_one_screen() -> None:
    starts = [
        compared("mean_ttft_ms", -0.4),
        compared("mean_tpot_ms", 9.0),
        compared("output_throughput", -5.0, spread=8),
    ]
    once = [compared("mean_tpot_ms", 3.0, starts=1)]
    none = [comparison.compare("mean_ttft_ms", "baseline", "all2all", ({}, {}))]
    registered = Registered(ASKED, [])
    changed = Registered(None, ["changed after the first run began"])
    text = "\n\n".join(
        "\n".join(contrasts.lines(found, [], asked))
        for found, asked in ((starts, registered), (once, changed), (none, registered))
    )
    if UPDATE:
        GOLDEN.write_text(f"{text}\n")
    assert f"{text}\n" == GOLDEN.read_text(), "if intended: GATESCOPE_GOLDEN=update"
    assert [one.verdict for one in starts] == ["equivalent", "larger", "inconclusive"]
    assert max(map(len, text.splitlines())) <= 80


def test_one_backend_has_nothing_to_compare() -> None:
    assert list(contrasts.lines([], [], Registered(ASKED, []))) == [contrasts.HEAD]
