"""Works out anew what the published results on two H200 take from merged steps, from their gate
logs: median decode step, longest step and delivery lag of every run; and the curves of the dose.

    uv run python bench/backends/remerge.py [RUN_DIR…]

The stamps of single requests were not kept, so a delivery lag is corrected by how much earlier the
run's last step ends than before (the latest end of any rank, by its own clock). A run whose decode
step is already what the gate logs say is left as it is, so a second pass changes nothing. What is
printed, by backend: by how many ms the published decode steps were too long, and what became of the
lags. Pictures and report.md of a whole run directory: `gatescope report RUN_DIR` after this.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.analysis import dose_findings
from core.analysis.dose_response import METRICS
from core.analysis.dose_sample import DoseRun
from core.experiment import dose
from core.report import forced
from core.report.document import picture
from core.routing import folder, gatelog
from core.routing.run import RunRouting

RESULTS = Path(__file__).parents[1] / "results"
Row = dict[str, str]


@dataclass(frozen=True)
class Figures:
    """Of one run; `earlier_ms`: how much earlier its last step ends than by the old merge."""

    decode_step_ms: float
    longest_ms: float
    longest_tokens: int
    earlier_ms: float


def figures_of(logs: Path) -> dict[str, Figures]:
    """Label → figures, from a backend's gate logs."""
    ranks = [gatelog.read(path) for path in sorted(logs.glob("*.gatelog"))]
    merged = folder.read(logs)
    found = {}
    for label, tokens in merged.segments.items():
        own = merged.where(tokens > 0)
        run = RunRouting(label)
        run.add(own)
        step, longest = run.decode_step_ms(), run.longest_step
        if step is None or longest is None:
            continue  # the warm-up's
        ends = own.columns["start_ns"] + own.columns["duration_ns"]
        last = max(_last_end(rank, label, set(own.columns["index"].tolist())) for rank in ranks)
        found[label] = Figures(step, longest.ms, longest.tokens, (last - int(ends.max())) / 1e6)
    return found


def _last_end(rank: gatelog.GateLog, label: str, indices: set[int]) -> int:
    columns = rank.columns
    used = [i in indices for i in columns["index"].tolist()] & (rank.tokens > 0)
    return int((columns["start_ns"] + columns["duration_ns"])[used].max(initial=0))


def correct(run_dir: Path) -> None:
    for backend in ("all2all", "baseline"):
        new = figures_of(run_dir / backend / "gate_logs")
        old = {row["dataset"]: row for row in _rows(run_dir) if row["backend"] == backend}
        apart = [float(row["decode_step_ms"]) - new[run].decode_step_ms for run, row in old.items()]
        late = {run: new[run] for run, row in old.items() if not _is_new(row, new)}
        lags = [new[run].earlier_ms for run in late] or [0.0]
        print(
            f"{run_dir.name}/{backend}: {len(late)} of {len(old)} runs change; decode step"
            f" {min(apart):.3f} to {max(apart):.3f} ms shorter, median"
            f" {statistics.median(apart):.3f}; lag {min(lags):.3f} to {max(lags):.3f} ms longer"
        )
        for file in (run_dir / backend / "results_json").glob("*.json"):
            if file.stem in late:
                _rewrite(file, _in_result(file.read_text(), late[file.stem]))
        if (journal := run_dir / "events.jsonl").exists():
            lines = journal.read_text().splitlines(keepends=True)
            _rewrite(journal, "".join(_in_event(line, backend, late) for line in lines))
        for file in run_dir.glob("s*.csv"):
            _rewrite(file, _in_table(file, backend, late))
        if (table := run_dir / "summary.json").exists():
            rows = json.loads(table.read_text())
            for row in rows:
                if row["backend"] == backend and row["dataset"] in late:
                    _correct_row(row, late[row["dataset"]])
            _rewrite(table, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def _is_new(row: Row, new: dict[str, Figures]) -> bool:
    return abs(float(row["decode_step_ms"]) - new[row["dataset"]].decode_step_ms) < 1e-6


def _rows(run_dir: Path) -> Iterator[Row]:
    for name in ("summary.csv", "summary-forced.csv"):
        if (file := run_dir / name).exists():
            yield from csv.DictReader(io.StringIO(file.read_text()))


def _in_result(text: str, new: Figures) -> str:
    text = re.sub(r'(?<="decode_step_ms": )[\d.]+', repr(new.decode_step_ms), text)
    step = f'{{"ms": {new.longest_ms!r}, "tokens": {new.longest_tokens}}}'
    text = re.sub(r'(?<="longest_step": ){[^}]*}', step, text)
    return re.sub(r'(?<="delivery_lag_ms": )[\d.]+', lambda m: _lag(m[0], new, 6), text)


def _in_event(line: str, backend: str, late: dict[str, Figures]) -> str:
    found = re.search(rf'"event":"RunFinished".*"run":"{backend}/([^"]+)"', line)
    if not found or found[1] not in late:
        return line
    new = late[found[1]]
    return re.sub(r'(?<="decode_step_ms":)[\d.]+', repr(new.decode_step_ms), line)


def _in_table(file: Path, backend: str, late: dict[str, Figures]) -> str:
    text = file.read_bytes().decode()
    reader = csv.DictReader(io.StringIO(text))
    out = io.StringIO()
    ends = "\r\n" if "\r\n" in text else "\n"
    writer = csv.DictWriter(out, reader.fieldnames or (), lineterminator=ends)
    writer.writeheader()
    for row in reader:
        run = row.get("dataset") or row["run"]
        if row["backend"] == backend and run in late:
            _correct_row(row, late[run])
        writer.writerow(row)
    return out.getvalue()


def _correct_row(row: dict[str, Any], new: Figures) -> None:
    """A row of steps.csv, whose figures are rounded, or of summary.*."""
    if "longest_step_ms" in row:
        row["decode_step_ms"] = f"{new.decode_step_ms:.3f}"
        row["longest_step_ms"] = f"{new.longest_ms:.3f}"
        row["longest_step_tokens"] = str(new.longest_tokens)
        row["delivery_lag_ms"] = _lag(row["delivery_lag_ms"], new, 1)
        return
    kind = type(row["decode_step_ms"])  # text in a table, a number in JSON
    row["decode_step_ms"] = kind(new.decode_step_ms)
    row["delivery_lag_ms"] = kind(_lag(str(row["delivery_lag_ms"]), new, 6))


def _lag(old: str, new: Figures, places: int) -> str:
    return repr(round(float(old) + new.earlier_ms, places))


def _rewrite(file: Path, text: str) -> None:
    if (data := text.encode()) != file.read_bytes():
        file.write_bytes(data)


def draw_doses(run_dir: Path) -> None:
    """Each size's forced-routing.md and its pictures, from summary-forced.csv and summary.csv."""
    runs = [_dose_run(row) for row in _rows(run_dir)]
    engine = next(_rows(run_dir))["engine"]
    for size in ("032", "256"):
        found = dose_findings.of_runs([run for run in runs if run.dataset == size])
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "graphs"
            drawn = list(forced.pictures(found, folder, engine, f"dataset {size}"))
            parts = forced.parts(found, [picture(f"graphs/{d.file.name}", d.title) for d in drawn])
            text = "\n\n".join(part.strip("\n") for part in parts) + "\n"
            text = re.sub(r"^!\[.*\]\(graphs/(mean_ttft|output).*\)\n\n", "", text, flags=re.M)
            for old in (run_dir / size).glob("*.png"):
                shutil.copy(folder / old.name, old)
        text = text.replace("](graphs/", "](").replace("## ", "# ", 1)
        (run_dir / size / "forced-routing.md").write_text(text)


def _dose_run(row: Row) -> DoseRun:
    found = dose.of_label(row["dataset"])
    asked = found if isinstance(found, dose.Dose) else None
    return DoseRun(
        backend=row["backend"],
        label=row["dataset"],
        pattern=asked.pattern if asked else "",
        level=asked.level if asked else 0.0,
        cv=float(row["aggregated_cv"]),
        rank=float(row["rank_imbalance"]) if row["rank_imbalance"] else None,
        values={metric: float(row[metric]) for metric in METRICS if row[metric]},
    )


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or (RESULTS / "h200-x2", RESULTS / "h200-x2-dose")):
        correct(path)
        if (path / "summary-forced.csv").exists():
            draw_doses(path)
