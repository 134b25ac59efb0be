"""What there is to read about a run directory and about one run, as paragraphs. Slow: read off the
UI thread."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from core.experiment.state import RunState
from core.plots.labels import LATENCIES
from tui.draw.glyphs import STATES
from tui.draw.text import NONE, Span, number

SETTINGS = (
    "date",
    "engine",
    "model_id",
    "endpoint",
    "num_prompts",
    "asked_output_len",
    "request_rate",
    "arrival",
    "max_concurrency",
    "temperature",
    "seed",
)
ERRORS = 5  # distinct ones of requests, listed in full


def findings(run_dir: Path) -> list[Span]:
    """Is what was measured valid, how do the backends compare, and what does skew cost: the
    sentences of `gatescope report`. GatescopeError where no run is done."""
    from core.analysis import cost_sentences, results, routing_cost
    from core.analysis import findings as analysis
    from core.errors import NoDataError
    from core.rundir import about
    from core.validity import verdict

    groups, engine = results.of_run_directory(run_dir)
    if not groups:
        raise NoDataError("no run is done yet; findings need finished runs")
    validity, found = verdict.of_run_directory(run_dir, groups), analysis.find(groups, engine)
    head, *problems = validity.in_words()
    said: list[Span] = [(head, "warn" if problems else "ok")]
    said += [(f"! {text.strip()}", "warn") for text in problems]
    said += [("", ""), ("Findings", "strong")]
    said += [(f"· {text}", "") for text in (*found.sentences, *found.forced.sentences)]
    said += [("", ""), ("What routing costs a decode step", "strong")]
    costs = routing_cost.of_run_directory(run_dir, about.read(run_dir), [g.name for g in groups])
    said += [(f"· {text}", "") for one in costs for text in cost_sentences.sentences_of(one)]
    if found.left_out:
        said += [("", ""), ("Runs that no association counts", "strong")]
        said += [(f"· {run}: {why}", "dim") for run, why in found.left_out.items()]
    return [*said, *(span for text in found.caveats for span in (("", ""), (text, "dim")))]


def of_run(run_dir: Path | None, run: RunState) -> list[Span]:
    """One run: how it ended, its dataset, figures, settings, errors and files."""
    symbol, role = STATES[run.phase]
    said: list[Span] = [(f"{symbol} {run.phase}", role)]
    said += [(text, "bad" if run.phase == "failed" else "") for text in run.reason.splitlines()]
    said += [
        ("", ""),
        (f"backend    {run.run.backend}", ""),
        (f"dataset    {run.run.dataset}   {run.run.file}", ""),
        (f"predicted  imbalance score {number(run.score, 4)}", ""),
    ]
    if run.run.imposed:
        said.append((f"forced to  {run.run.imposed}", ""))
    said += _figures(run)
    return [*said, *_files(run_dir, run)] if run_dir else said


def _figures(run: RunState) -> list[Span]:
    figures = run.figures
    if figures is None:
        return []
    said: list[Span] = [
        ("", ""),
        ("ms          n     mean      p50      p90      p99      max", "dim"),
    ]
    for name, latency in figures.latencies.items():
        values = (latency.mean, latency.p50, latency.p90, latency.p99, latency.max)
        cells = " ".join(f"{number(value, 2):>8}" for value in values)
        said.append((f"{LATENCIES[name]:<6} {latency.n:>6} {cells}", ""))
    cv, excess = number(figures.cv, 3), number(figures.excess_cv, 3)
    rank, step = number(figures.rank_imbalance, 2), number(figures.decode_step_ms, 2)
    reason = f" ({figures.imbalance_reason})" if figures.imbalance_reason else ""
    return [
        *said,
        ("", ""),
        (f"{figures.completed} requests done, {figures.failed} failed", ""),
        (f"{number(figures.output_throughput, 1)} output tokens/s, {figures.duration_s:.2f} s", ""),
        (
            f"per-step CV {cv}, excess CV {excess}{reason}",
            "",
        ),
        (f"aggregated CV {number(figures.aggregated_cv, 3)}, busiest rank {rank} × mean", ""),
        (f"median decode step {step} ms", ""),
    ]


def _files(run_dir: Path, run: RunState) -> list[Span]:
    """Settings and errors from the result file, and where the files are."""
    from core.rundir import result

    said: list[Span] = []
    if run.result and (run_dir / run.result).is_file():
        found = result.read(run_dir / run.result)
        known = [(name, getattr(found, name)) for name in SETTINGS]
        said += [("", ""), ("Settings", "strong")]
        said += [(f"{n:<17} {NONE if v is None else v}", "") for n, v in known]
        errors = Counter(error for error in found.errors if error)
        said += [("", ""), ("Errors of requests", "strong")] if errors else []
        said += [(f"{n} × {error}", "bad") for error, n in errors.most_common(ERRORS)]
    folder = run_dir / run.run.backend
    files = {
        "result": run_dir / run.result if run.result else None,
        "requests": folder / "requests" / f"{run.run.label}.npz",
        "server log": folder / "server.log",
        "gate logs": folder / "gate_logs",
    }
    there = [(name, file) for name, file in files.items() if file and file.exists()]
    said += [("", ""), ("Files", "strong")]
    return [*said, *((f"{name:<10} {file}", "") for name, file in there)]
