"""`gatescope report`: report.md and report.html of a run directory, from what its files say."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import files
from core.analysis import findings, results, step_model, step_sample
from core.analysis.findings import Findings, Row
from core.analysis.results import Results
from core.analysis.step_model import StepModel
from core.analysis.step_sample import StepSample
from core.backends import builtin
from core.errors import FileError, NoDataError
from core.experiment import state
from core.experiment.config import Config
from core.experiment.state import RunState
from core.plots import gallery, scatter
from core.plots.gallery import Drawn
from core.report import document, summary
from core.report import forced as forced_report
from core.report import router as router_report
from core.report.document import Code, Heading, Items, Part, Picture, Table, Text
from core.routing import placement
from core.rundir import journal, selection
from core.rundir.about import read_about, read_facts
from core.rundir.selection import Selection
from core.stats.association import Association
from core.terminal import shown
from core.validity import verdict
from core.validity.problem import Validity

QUESTION = "Does the input skew the Mixture-of-Experts router, and does the skew cost latency?"
METHOD = (
    "n counts datasets, each at the mean of its repeats. "
    "Square brackets hold 95 % intervals: bootstrap over datasets, Sen's for slopes. "
    "p is by permutation of Spearman's correlation, corrected by Holm over all backends and metrics. "
    "Excess CV is the CV of expert load beyond what as many tokens routed evenly at random would show. "
    "A result that is not seen may still be there, as large as its interval allows."
)
SELECTED = "Datasets without an excess CV are in no association: it speaks for the measurably skewed ones only."
STEP_METHOD = (
    "Step time is fitted on tokens, prompt tokens, requests and the extra load of the busiest rank (expert, without "
    "expert parallelism). It is an association inside the log, not an experiment."
)
WHAT_IF = (
    "Placements are made from the first half of the decode steps and judged on the second. EPLB has one spare slot a "
    "GPU; hierarchical takes 2 nodes. A saving is told where a cost is seen, for the number of ranks that ran, over "
    "the placement that ran: linear, or EPLB's logged maps."
)
NO_GPU = "NVML saw no GPU on this host: if a CPU served, the times say nothing about GPUs."
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Source:
    """A run directory as it was read, of the chosen datasets alone; `unread`: why some gate logs
    are not in it."""

    chosen: Selection
    groups: list[Results]
    engine: str
    about: Json
    config: Config
    undone: dict[str, RunState]
    samples: dict[str, StepSample]
    unread: list[str]


def write(path: Path, only: Collection[str] = ()) -> tuple[list[Path], Validity]:
    """report.md, report.html and their PNGs, and the verdict on what they tell of: all, or some
    datasets by index.

    FileError where `path` holds no results of these or cannot be written.
    """
    source = _source(path, selection.of_run_directory(path, only))
    validity = verdict.of_run_directory(path, source.groups, source.chosen)
    found = findings.find(source.groups, source.engine)
    folder = source.chosen.folder(path)
    try:
        parts = [*_opening(source, validity), *_parts(folder, source, found)]
        made = {
            "report.md": document.markdown(parts),
            "report.html": document.page(f"gatescope: {path.name}", parts, folder),
        }
        for name, text in made.items():
            files.write_whole(folder / name, text.encode(errors="replace"))
    except OSError as error:
        raise FileError(f"{error.filename}: cannot be written: {error.strerror}") from None
    return [folder / name for name in made], validity


def _source(path: Path, chosen: Selection) -> _Source:
    groups, engine = results.of_run_directory(path, chosen)
    if not groups:
        raise NoDataError(f"{path}: no run is done yet: there is nothing to report")
    about, past = read_facts(path), state.fold(journal.stream_events(path))
    undone = {i: run for i, run in chosen.of(past.runs).items() if run.phase != "done"}
    samples, unread = step_sample.of_backends(path, [group.name for group in groups], chosen)
    return _Source(chosen, groups, engine, about, read_about(path).config, undone, samples, unread)


def _opening(source: _Source, validity: Validity) -> list[Part]:
    """The question, of which datasets, and what is wrong: nothing below may be read without it."""
    head, *problems = (line.strip() for line in validity.in_words())
    told: list[Part] = [Items(problems)] if problems else []
    covers = [Text(f"This report covers {source.chosen.in_words()} of the run directory.")] * bool(
        source.chosen.names
    )
    unseen = f" Nothing to judge by: {', '.join(validity.unchecked)}." if validity.unchecked else ""
    return [
        Heading(f"gatescope: {source.config.experiment.name}", 1),
        Text(QUESTION),
        *covers,
        Heading("Validity"),
        Text(head),
        *told,
        Text(f"Checked: {', '.join(validity.checked)}.{unseen}"),
    ]


def _parts(folder: Path, source: _Source, found: Findings) -> list[Part]:
    """What follows; its PNGs are drawn under `folder`. OSError where they cannot be."""
    groups, samples, note = source.groups, source.samples, source.chosen.in_words()
    axes = [scatter.best_axis(groups)]
    drawn = list(
        gallery.draw_all(
            folder / "graphs", groups, samples, source.engine, found.associations, axes, note
        )
    )
    return [
        *_answer(found, source.about),
        *_set_up(source.about, source.config),
        *_results(groups),
        *_pictures(folder, drawn, "ecdf"),
        *_associations(found.associations),
        *_pictures(folder, drawn, "scatter"),
        Heading("What the router did"),
        *router_report.parts(groups),
        *(
            _pictures(folder, drawn, "heatmap", "cv-over-time", "rank-load")
            or [Text("No gate log of natural routing.")]
        ),
        *forced_report.parts(found.forced, folder, source.engine, note),
        *_steps(samples, source.unread),
        *_pictures(folder, drawn, "step-time"),
        *_left_out(found, source.undone),
        *_repeat(source.about, source.config),
    ]


def _answer(found: Findings, about: Json) -> list[Part]:
    unseen = [NO_GPU] * (not about["gpus"] and found.engine != builtin.ENGINE)
    return [Heading("Findings"), Items([*found.sentences, *found.caveats, *unseen]), Text(METHOD)]


def _set_up(about: Json, config: Config) -> list[Part]:
    e, host = config.experiment, about["host"]
    facts = [
        f"engine: {about['engine']}; model: {config.model.id}; started {about['started']}",
        f"host: {host['system']}, {host['cpus']} CPUs; GPUs: {'; '.join(about['gpus']) or 'none seen'}",
        f"{e.num_prompts} prompts a dataset, {e.output_len} output tokens, request rate {e.request_rate}, "
        f"max concurrency {e.max_concurrency or 'unlimited'}, {e.repeats} repeats, seed {e.seed}, "
        f"datasets {'shuffled' if e.shuffle else 'in order'}",
        "versions: " + ", ".join(f"{name} {v}" for name, v in about["versions"].items()),
    ]
    return [
        Heading("What ran"),
        Items([*facts, *(_server(n, s) for n, s in about["servers"].items())]),
    ]


def _server(name: str, server: Json) -> str:
    """What the server said of itself, and where that is not what it was asked to be."""
    ran = (
        ", ".join(f"{key} {value}" for key, value in server.get("ran", {}).items())
        or "it told nothing of itself"
    )
    different = "; ".join(server.get("mismatches", [])) or "none"
    return f"{name}: {ran}. Asked but not run: {different}"


def _results(groups: Sequence[Results]) -> list[Part]:
    forms = {
        "mean_ttft_ms": ".1f",
        "mean_tpot_ms": ".2f",
        "output_throughput": ".1f",
        "per_step_cv": ".3f",
    }
    forms |= {"noise_floor": ".3f", "excess_cv": ".3f", "rank_imbalance": ".2f"}
    rows = []
    for group in groups:
        medians = summary.backend_medians(group)
        rows.append(
            [
                group.name,
                str(len(group.by_label)),
                *(shown(medians[key], form) for key, form in forms.items()),
            ]
        )
    head = [
        "backend",
        "runs",
        "TTFT ms",
        "TPOT ms",
        "tok/s",
        "CV",
        "noise floor",
        "excess CV",
        "rank max/mean",
    ]
    return [
        Heading("Results"),
        Table(head, rows),
        Text(f"Medians over runs. Every run: summary.csv.{_placed(groups)}"),
    ]


def _placed(groups: Sequence[Results]) -> str:
    """What the rank imbalance is of."""
    told = []
    for group in groups:
        measured = [result.get("measured_imbalance") or {} for result in group.by_label.values()]
        if ways := sorted({m["placement"] for m in measured if m.get("placement")}):
            told.append(f"{group.name}: {', '.join(ways)}")
    return f" Experts on ranks – {'; '.join(told)}." if told else ""


def _associations(rows: Sequence[Row]) -> list[Part]:
    head = [
        "backend",
        "metric",
        "points",
        "n",
        "Spearman",
        "Pearson",
        "slope per 0.1",
        "variance, %",
        "partial",
        "p (Holm)",
    ]
    lines = [
        _association(row, of, which)
        for row in rows
        for which, of in (("all", row.association), ("within 1.5 IQR", row.fenced))
    ]
    note = "partial: Spearman with prompt and output token counts held fixed. Only all points are tested."
    return [Heading("Against excess CV"), Table(head, lines), Text(note)]


def _association(row: Row, of: Association, which: str) -> list[str]:
    name, unit = results.NAMES[row.metric]
    slope = of.slope.scaled(findings.PER).shown("+.3g")
    figures = [
        of.spearman.shown(".2f"),
        of.pearson.shown(".2f"),
        slope,
        of.explained.scaled(100).shown(".0f"),
    ]
    return [
        row.backend,
        f"{name}, {unit}",
        which,
        str(of.n),
        *figures,
        of.partial.shown(".2f"),
        shown(of.p_holm, ".2g"),
    ]


def _steps(samples: Mapping[str, StepSample], unread: Sequence[str]) -> list[Part]:
    """What imbalance costs a step, and what other placements of the experts would have made of the
    same log."""
    sentences = list(unread)
    tables: list[Part] = []
    for name, sample in samples.items():
        models = [step_model.fit(sample, phase) for phase in ("decode", "prefill")]
        sentences += [model.in_words(name) for model in models]
        tables.append(_what_if(name, sample, models[0]))
    note = Text(f"{STEP_METHOD} {WHAT_IF}")
    return [Heading("Per engine step, and under other placements"), Items(sentences), *tables, note]


def _what_if(backend: str, sample: StepSample, model: StepModel) -> Table:
    outcomes = placement.what_if(sample.loads)
    if sample.placed == "EPLB":
        outcomes.append(_as_it_ran(sample))
    ran = "as it ran" if sample.placed == "EPLB" else "linear"
    base = next((o.extra for o in outcomes if (o.ranks, o.name) == (sample.ranks, ran)), None)
    head = [f"{backend}: GPUs", "placement", "rank max/mean", "decode step saved, µs"]
    rows = []
    for o in outcomes:
        known = base is not None and model.sees_a_cost and o.ranks == sample.ranks and o.name != ran
        saved = model.per_token.scaled((base or 0.0) - o.extra).shown("+.3g") if known else "–"
        rows.append([str(o.ranks), o.name, f"{o.ratio:.3f}", saved])
    return Table(head, rows)


def _as_it_ran(sample: StepSample) -> placement.Outcome:
    """EPLB's placements as they were, over the steps that the others are judged on."""
    decode = sample.of_phase("decode")
    later = slice(len(decode.rows) // 2, None)
    extra, mean = decode["extra"][later], decode["mean_load"][later]
    ratio = float((1 + extra / mean).mean())
    return placement.Outcome(
        ranks=sample.ranks, name="as it ran", ratio=ratio, extra=float(extra.mean())
    )


def _left_out(found: Findings, undone: Mapping[str, RunState]) -> list[Part]:
    unfinished = [f"{i}: {r.phase}: {r.reason or 'not run'}" for i, r in undone.items()]
    unmeasured = [f"{run}: no excess CV: {why}" for run, why in found.left_out.items()]
    told: list[Part] = [Items([*unfinished, *unmeasured] or ["none"])]
    return [Heading("Left out, and why"), *told, *([Text(SELECTED)] if unmeasured else [])]


def _pictures(folder: Path, drawn: Sequence[Drawn], *figures: str) -> list[Part]:
    return [
        Picture(d.file.relative_to(folder).as_posix(), d.title, d.caption)
        for figure in figures
        for d in drawn
        if d.figure == figure
    ]


def _repeat(about: Json, config: Config) -> list[Part]:
    git = about.get("git") or {}
    command = ["gatescope", "--batch", "--config", str(config.path)]
    used = {run["dataset"] for run in about["runs"]}
    if len(used) < len(config.dataset_paths):
        command += ["--only", ",".join(sorted(used))]
    if len(about["backends"]) < len(config.backends):
        command += ["--backend", ",".join(about["backends"])]
    if config.dose:
        command += ["--dose", ",".join(f"{level:g}" for level in config.dose.levels)]
        command += ["--pattern", ",".join(config.dose.patterns)]
    changed = f", {git.get('changed_files')} changed files" if git.get("changed_files") else ""
    state_of = (
        f"The config's directory was at git commit {git['commit']}{changed}."
        if git.get("commit")
        else ""
    )
    note = f"run.json holds the whole configuration that was run. {state_of}".strip()
    return [Heading("To repeat it"), Code(shlex.join(command)), Text(note)]
