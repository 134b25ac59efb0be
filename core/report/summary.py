"""The summary of a run directory: one row a run, and the medians of each backend."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from core.analysis.results import Results
from core.rundir.result import Result
from core.stats.descriptive import median
from core.terminal import shown

RESULT_COLUMNS = (
    "engine",
    "completed",
    "num_prompts",
    "total_input_tokens",
    "total_output_tokens",
    "duration",
    "mean_ttft_ms",
    "median_ttft_ms",
    "mean_tpot_ms",
    "median_tpot_ms",
    "mean_itl_ms",
    "mean_e2e_ms",
    "request_throughput",
    "output_throughput",
    "decode_step_ms",
    "delivery_lag_ms",
    "imbalance_score",
    "energy_j",
    "energy_reason",
    "j_per_output_token",
    "sm_clock_mhz",
    "power_limit_w",
)
IMBALANCE_COLUMNS = (
    "per_step_cv",
    "noise_floor",
    "excess_cv",
    "excess_cv_reason",
    "aggregated_cv",
    "layer_cv",
    "max_min_ratio",
    "rank_imbalance",
    "placement",
    "kernel",
    "tokens",
    "steps",
    "expert_imbalance",
    "hottest_share",
    "entropy",
    "gini",
    "dead_experts",
)
PHASE_COLUMNS = ("steps", "per_step_cv", "noise_floor", "excess_cv", "rank_imbalance")
WORK_COLUMNS = (  # of the busiest rank
    "active_experts",
    "tiles",
    "first_waves",
    "second_waves",
    "padded_share",
    "work_over_fair",
)
ENERGY_COLUMNS = ("energy_j", "j_per_token", "sm_clock_mhz")
PHASES = ("prefill", "decode")


def rows(groups: Sequence[Results]) -> list[dict[str, Any]]:
    """One row a run with natural routing: what summary.csv and summary.json hold."""
    return [
        {"backend": group.name, "dataset": label, "start": result.start, **_columns(result)}
        for group in groups
        for label, result in group.by_label.items()
    ]


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """`rows` as CSV, with a head even if there are none."""
    out = io.StringIO()
    columns = ["backend", "dataset", "start", *_columns(Result())]
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _columns(result: Result) -> dict[str, Any]:
    measured = result.measured_imbalance
    low, high = (measured and measured.intervals.get("excess_cv")) or (None, None)
    found = {key: getattr(result, key) for key in RESULT_COLUMNS}
    found |= {key: getattr(measured, key, None) for key in IMBALANCE_COLUMNS}
    found |= {"excess_cv_low": low, "excess_cv_high": high}
    for name in PHASES:
        phase = measured.phase(name) if measured else None
        found |= {f"{name}_{key}": getattr(phase, key, None) for key in PHASE_COLUMNS}
        busiest = phase.busiest_rank if phase else None
        found |= {f"{name}_{key}": getattr(busiest, key, None) for key in WORK_COLUMNS}
        used = result.energy_phases.get(name)
        found |= {f"{name}_{key}": getattr(used, key, None) for key in ENERGY_COLUMNS}
    return found


def table(groups: Sequence[Results]) -> str:
    """Medians over each backend's runs, as text; energy where any is known. `rank`: max/mean."""
    found = [medians(group) for group in groups]
    knows_energy = any(m["j_per_output_token"] is not None for m in found)
    joules = f"{'J/token':>10}" if knows_energy else ""
    head = f"{'medians of':<14}{'runs':>5}{'TTFT ms':>10}{'TPOT ms':>10}{joules}{'tok/s':>10}"
    lines = [f"{head}{'CV':>7}{'floor':>7}{'excess':>8}{'rank':>7}"]
    for group, m in zip(groups, found, strict=True):
        joules = f"{shown(m['j_per_output_token'], '.3g'):>10}" if knows_energy else ""
        lines.append(
            f"{group.name:<14}{len(group.by_label):>5}{shown(m['mean_ttft_ms'], '10.1f'):>10}"
            f"{shown(m['mean_tpot_ms'], '10.2f'):>10}{joules}"
            f"{shown(m['output_throughput'], '10.1f'):>10}"
            f"{shown(m['per_step_cv'], '7.3f'):>7}{shown(m['noise_floor'], '7.3f'):>7}"
            f"{shown(m['excess_cv'], '8.3f'):>8}{shown(m['rank_imbalance'], '7.2f'):>7}"
        )
    return "\n".join(lines)


def medians(group: Results) -> dict[str, float | None]:
    """Medians over a backend's runs with natural routing; its routing's over those that did not
    route alike."""
    results, measured = list(group.by_label.values()), list(group.routed.values())
    return {
        "mean_ttft_ms": median([r.mean_ttft_ms for r in results]),
        "mean_tpot_ms": median([r.mean_tpot_ms for r in results]),
        "j_per_output_token": median([r.j_per_output_token for r in results]),
        "output_throughput": median([r.output_throughput for r in results]),
        "per_step_cv": median([m.per_step_cv for m in measured]),
        "noise_floor": median([m.noise_floor for m in measured]),
        "excess_cv": median([m.excess_cv for m in measured]),
        "rank_imbalance": median([m.rank_imbalance for m in measured]),
    }
