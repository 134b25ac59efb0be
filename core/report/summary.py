"""The end of a batch: tables, findings, plots and files."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from core.analysis.results import Results, number
from core.backends import builtin
from core.errors import NoDataError
from core.experiment import dose
from core.files import formatted, write_whole
from core.report import summary
from core.stats.descriptive import median
from core.terminal import printable, shown, tell, terminal_columns

if TYPE_CHECKING:
    from core.analysis.findings import Findings
    from core.validity.problem import Validity


def report(path: Path, groups: Sequence[Results], engine: str) -> Validity:
    """Write summary.csv, summary.json, findings.json and the PNGs; tell of them with a table, words
    and a plot."""
    from core.analysis import findings, step_sample
    from core.plots import gallery, scatter, text
    from core.validity import verdict

    rows = summary.summary_rows(groups)
    write_whole(path / "summary.csv", summary.summary_csv(rows).encode())
    write_whole(path / "summary.json", formatted(rows))
    tell("")
    tell(
        f"engine: {engine}"
        + (": its times say nothing about GPUs" if engine == builtin.ENGINE else "")
    )
    tell(table(groups))
    validity, found = verdict.of_run_directory(path, groups), findings.find(groups, engine)
    kept = {"validity": validity, **msgspec.structs.asdict(found)}
    write_whole(path / "findings.json", formatted(kept))
    files = _report_forced(path, groups, found)
    for line in (*validity.in_words(), *found.headlines):
        tell(printable(f"  {line}"))
    with contextlib.suppress(NoDataError):
        axis = scatter.best_axis(groups)
        drawn = scatter.series(groups, findings.HEADLINE, axis, engine, found.associations)
        tell("")
        tell(text.draw(drawn, min(terminal_columns(), 110), 24, colour=sys.stderr.isatty()))
    tell("")
    samples, unread = step_sample.of_backends(path, [group.name for group in groups])
    for problem in unread:
        tell(printable(f"! {problem}"))
    for made in gallery.draw_all(path / "graphs", groups, samples, engine, found.associations):
        tell(f"wrote {made.file}")
    for file in (*files, path / "summary.csv", path / "findings.json"):
        tell(f"wrote {file}")
    tell(f"to read it all: gatescope report {path}")
    for group in groups:
        forced = f", {len(group.forced)} of them {dose.NAME}" * bool(group.forced)
        runs = len(group.by_label) + len(group.forced)
        tell(f"results: {path / group.name / 'results_json'} ({runs} runs{forced})")
    return validity


def _report_forced(path: Path, groups: Sequence[Results], found: Findings) -> list[Path]:
    """What was forced, in tables and plots of its own; the files that it is in."""
    if not any(group.forced for group in groups):
        return []
    from core.plots import dose as figure
    from core.plots import text
    from core.report import forced as forced_report

    rows = summary.summary_rows([Results(group.name, group.forced, {}, {}) for group in groups])
    write_whole(path / "summary-forced.csv", summary.summary_csv(rows).encode())
    tell(f"\n{dose.NAME}: means of each dose\n{forced_report.table(found.forced)}")
    with contextlib.suppress(NoDataError):  # no TPOT of a dose
        drawn = figure.series(found.forced, "mean_tpot_ms", engine=found.engine)
        tell("\n" + text.draw(drawn, min(terminal_columns(), 110), 26, colour=sys.stderr.isatty()))
    return [
        *(file for file, _ in forced_report.pictures(found.forced, path, found.engine)),
        path / "summary-forced.csv",
    ]


def table(groups: Sequence[Results]) -> str:
    """Medians over each backend's runs."""
    head = f"{'backend':<14}{'runs':>5}{'TTFT ms':>10}{'TPOT ms':>10}{'tok/s':>10}"
    rows = [f"{head}{'CV':>8}{'floor':>8}{'excess':>8}{'rank max/mean':>15}   (medians over runs)"]
    for group in groups:
        m = summary.backend_medians(group)
        rows.append(
            f"{group.name:<14}{len(group.by_label):>5}{shown(m['mean_ttft_ms'], '10.1f'):>10}"
            f"{shown(m['mean_tpot_ms'], '10.2f'):>10}{shown(m['output_throughput'], '10.1f'):>10}"
            f"{shown(m['per_step_cv'], '8.3f'):>8}{shown(m['noise_floor'], '8.3f'):>8}"
            f"{shown(m['excess_cv'], '8.3f'):>8}{shown(m['rank_imbalance'], '15.2f'):>15}"
        )
    return "\n".join(rows)


SUMMARY_COLUMNS = (
    *(
        "backend",
        "dataset",
        "engine",
        "completed",
        "num_prompts",
        "total_input_tokens",
        "total_output_tokens",
    ),
    *(
        "duration",
        "mean_ttft_ms",
        "median_ttft_ms",
        "mean_tpot_ms",
        "median_tpot_ms",
        "mean_itl_ms",
        "mean_e2e_ms",
    ),
    *(
        "request_throughput",
        "output_throughput",
        "decode_step_ms",
        "delivery_lag_ms",
        "imbalance_score",
    ),
)


IMBALANCE_COLUMNS = (
    *("per_step_cv", "noise_floor", "excess_cv", "excess_cv_reason", "aggregated_cv", "layer_cv"),
    *("max_min_ratio", "rank_imbalance", "placement", "tokens", "steps"),
    *("expert_imbalance", "hottest_share", "entropy", "gini", "dead_experts"),
)


PHASE_COLUMNS = ("steps", "per_step_cv", "noise_floor", "excess_cv", "rank_imbalance")


PHASES = ("prefill", "decode")


def summary_rows(groups: Sequence[Results]) -> list[dict[str, Any]]:
    """One row a run: what summary.csv and summary.json hold."""
    rows = []
    for group in groups:
        for label, result in group.by_label.items():
            row: dict[str, Any] = {"backend": group.name, "dataset": label}
            row |= {k: result.get(k) for k in SUMMARY_COLUMNS if k not in row}
            rows.append(row | _imbalance_columns(result.get("measured_imbalance") or {}))
    return rows


def _imbalance_columns(measured: dict[str, Any]) -> dict[str, Any]:
    low, high = (measured.get("intervals") or {}).get("excess_cv") or (None, None)
    phases = {phase: measured.get(phase) or {} for phase in PHASES}
    return {
        **{k: measured.get(k) for k in IMBALANCE_COLUMNS},
        **{"excess_cv_low": low, "excess_cv_high": high},
        **{f"{phase}_{k}": of.get(k) for phase, of in phases.items() for k in PHASE_COLUMNS},
    }


def summary_csv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [*SUMMARY_COLUMNS, *_imbalance_columns({})], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def backend_medians(group: Results) -> dict[str, float | None]:
    """Medians over a backend's runs, for the summary table."""
    keys = ("mean_ttft_ms", "mean_tpot_ms", "output_throughput")
    table = {k: median(number(r.get(k)) for r in group.by_label.values()) for k in keys}
    for key in ("per_step_cv", "noise_floor", "excess_cv", "rank_imbalance"):
        table[key] = median(
            number((r.get("measured_imbalance") or {}).get(key)) for r in group.by_label.values()
        )
    return table
