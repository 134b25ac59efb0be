"""What there is to read about a run directory and about one run, as paragraphs. Slow: read off the
UI thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from core.experiment.state import RunState
from core.plots.labels import LATENCIES
from core.plots.labels import metric as metric_name
from tui.draw.glyphs import STATES
from tui.draw.text import NONE, Span, number

if TYPE_CHECKING:
    from core.analysis.across import Pair

CHANGES = "{:<24} {:>8} {:>8} {:>8}  {:<17} {}"
MARGIN_PCT = 2.0
VERDICTS = {"larger": "differs", "equivalent": "same", "inconclusive": "?"}
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
    from core.analysis import findings as analysis
    from core.analysis import results
    from core.errors import NoDataError
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
    if found.left_out:
        said += [("", ""), ("Runs that no association counts", "strong")]
        said += [(f"· {run}: {why}", "dim") for run, why in found.left_out.items()]
    return [*said, *(span for text in found.caveats for span in (("", ""), (text, "dim")))]


def compared(before: Path, after: Path) -> list[Span]:
    """Run directories or sweeps as `gatescope compare` sets them against each other: for each pair
    what differs, and every metric with its interval. GatescopeError where a side has no result."""
    from core.analysis import across, comparand

    sides = (comparand.read(before), comparand.read(after))
    made, rest = across.pairs(*sides, MARGIN_PCT)
    said: list[Span] = [
        (f"differs, same: by more, or less, than {MARGIN_PCT:g} %; ?: not known", "dim")
    ]
    said += [span for pair in made for span in _pair(pair)]
    return [*said, (f"without a counterpart: {', '.join(rest)}", "dim")] if rest else said


def _pair(pair: Pair) -> Iterator[Span]:
    yield pair.name, "strong"
    for what in pair.differences:
        yield f"· {what.in_words}", "dim"
    if pair.refused:
        yield pair.refused, "warn"
    if pair.metrics:
        yield CHANGES.format("", "before", "after", "change", "95 % interval", ""), "dim"
    for metric in pair.metrics:
        own = metric.comparison
        change = NONE if own.percent is None else f"{own.percent:+.1f} %"
        figures = (f"{metric.before:.4g}", f"{metric.after:.4g}", change, own.shown_interval)
        row = (metric_name(own.metric).replace("requests/s", "1/s"), *figures)
        yield CHANGES.format(*row, VERDICTS[own.verdict]).rstrip(), ""
    for one in pair.routing:
        ends = " [{:+.3g}, {:+.3g}]".format(*one.interval) if one.interval else ""
        by = f"{one.after - one.before:+.3g}{ends}"
        yield f"{one.name}: {one.before:.3g} → {one.after:.3g}, {by}", ""
    for text in pair.left_out:
        yield f"left out: {text}", "dim"
    yield "", ""


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
