"""`gatescope report`: report.md and report.html of a run directory, from what its files say."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core import files
from core.analysis import findings, results, routing_cost, step_sample
from core.analysis.findings import Findings, Row
from core.analysis.results import Results
from core.analysis.routing_cost import BackendCost
from core.analysis.step_sample import StepSample
from core.backends import builtin
from core.errors import FileError, NoDataError
from core.experiment import state
from core.experiment.state import RunState
from core.plots import gallery, scatter
from core.plots.gallery import Drawn
from core.report import (
    brief,
    contrasts,
    document,
    energy,
    forced,
    foretold,
    replayed,
    router,
    summary,
)
from core.report import routing_cost as cost_section
from core.report.document import code, heading, items, picture, table, text
from core.report.page import page
from core.rundir import about as run_json
from core.rundir import journal, registered, selection
from core.rundir.about import About, ServerNote
from core.rundir.registered import Registered
from core.rundir.selection import Selection
from core.stats.association import Association
from core.stats.written import p_value
from core.terminal import shown
from core.validity import verdict
from core.validity.problem import Validity

QUESTION = "Does the input skew the Mixture-of-Experts router, and does the skew cost latency?"
METHOD = (
    "n counts datasets, each at the mean of its repeats. "
    "Square brackets hold 95 % intervals: bootstrap over datasets, Sen's for slopes. "
    "p is by permutation of ranks, that the two are unrelated: the least of Spearman's "
    "correlation, of a bend's and of the distance correlation, corrected for being three. "
    "A verdict on a change is by Kendall's test of the slope. "
    "Holm's correction is over all of these and the verdicts on backends; "
    "that on the metric registered before the first run stands by itself. "
    "Excess CV² is the CV² of expert load beyond what as many tokens, routed evenly at random, "
    "would show; it is below 0 where a run shows less. "
    "An effect that is not detected may still exist, as large as its interval allows. "
    "Backends are compared by the means of their server starts: Student's t, "
    "paired where starts share the datasets out. "
    "Larger than the smallest effect that matters, or smaller (equivalent, by two one-sided "
    "tests), is said at 5 %."
)
SELECTED = "Runs without an excess CV² are in no association."
NO_GPU = "NVML saw no GPU on this host: if a CPU served, the times say nothing about GPUs."
SET_UP, AGAINST, LEFT_OUT = "What ran", "Against excess CV²", "Left out, and why"
DETAIL = (SET_UP, AGAINST, router.TITLE, energy.TITLE, LEFT_OUT)  # opened when asked
RESULT_FORMS = {
    "mean_ttft_ms": ".1f",
    "mean_tpot_ms": ".2f",
    "j_per_output_token": ".3g",
    "output_throughput": ".1f",
    "per_step_cv": ".3f",
    "noise_floor": ".3f",
    "excess_cv": ".3f",
    "rank_imbalance": ".2f",
}
RESULT_HEAD = [
    "backend",
    "runs",
    "TTFT ms",
    "TPOT ms",
    "J/token",
    "tok/s",
    "CV",
    "noise floor",
    "excess CV",
    "rank max/mean",
]
ASSOCIATION_HEAD = [
    "backend",
    "metric",
    "points",
    "n",
    "Spearman",
    "Pearson",
    "change, %",
    "variance, %",
    "partial",
    "distance corr.",
    "p (Holm)",
    "verdict on the change",
    "its p (Holm)",
]


@dataclass(frozen=True, slots=True)
class _Source:
    """A run directory as it was read, for the chosen datasets alone; `unread`: why some gate logs
    are missing."""

    chosen: Selection
    groups: list[Results]
    about: About
    undone: dict[str, RunState]
    asked: Registered
    samples: dict[str, StepSample]
    unread: list[str]
    costs: list[BackendCost]


@dataclass(frozen=True, slots=True)
class _Pictures:
    """The PNGs under a report's folder."""

    folder: Path
    drawn: Sequence[Drawn]

    def of(self, *figures: str) -> list[str]:
        return [
            picture(self._path(one), one.title, one.caption)
            for figure in figures
            for one in self.drawn
            if one.figure == figure
        ]

    @property
    def narrow(self) -> dict[str, bytes]:
        """Path → a PNG of the same for a phone."""
        from core.plots import png

        return {self._path(one): png.narrow(one.panels) for one in self.drawn}

    def _path(self, one: Drawn) -> str:
        return one.file.relative_to(self.folder).as_posix()


def write(path: Path, only: Collection[str] = ()) -> tuple[list[Path], Validity]:
    """report.md, report.html and their PNGs, and the verdict on what they rest on; for all
    datasets, or for some by index.

    NoDataError if `path` holds no results of these; FileError if they cannot be read, or the report
    cannot be written.
    """
    source = _source(path, selection.of_run_directory(path, only))
    validity = verdict.of_run_directory(path, source.groups, source.chosen)
    found = findings.find(source.groups, source.about.engine, source.asked.first)
    folder = source.chosen.folder(path)
    try:
        drawn = list(_draw(folder / "graphs", source, found, validity))
        pictures = _Pictures(folder, drawn)
        parts = [*_opening(source, validity, found), *_parts(source, found, pictures)]
        written, title = document.markdown(parts), f"gatescope: {path.name}"
        html = page(title, written, folder, DETAIL, pictures.narrow)
        made = {"report.md": written, "report.html": html}
        for name, content in made.items():
            files.write_whole(folder / name, content.encode(errors="replace"))
    except OSError as error:
        raise FileError(f"{error.filename}: cannot be written: {error.strerror}") from None
    return [folder / name for name in made], validity


def _source(path: Path, chosen: Selection) -> _Source:
    groups, _ = results.of_run_directory(path, chosen)
    if not groups:
        raise NoDataError(f"{path}: no run is done yet: there is nothing to report")
    past = state.fold(journal.stream_events(path))
    undone = {i: run for i, run in chosen.of(past.runs).items() if run.phase != "done"}
    names, about = [group.name for group in groups], run_json.read(path)
    samples, unread = step_sample.of_backends(path, names, chosen)
    costs = routing_cost.of_run_directory(path, about, names, chosen)
    asked = registered.read(path)
    return _Source(chosen, groups, about, undone, asked, samples, unread, costs)


# --- sections, from the top ---


def _opening(source: _Source, validity: Validity, found: Findings) -> list[str]:
    """The question, the datasets covered, five lines that sum it up, and what is wrong: nothing
    below should be read without it."""
    head, *problems = (line.strip() for line in validity.in_words())
    parts = [heading(f"gatescope: {source.about.config.experiment.name}", 1), text(QUESTION)]
    if source.chosen.names:
        parts.append(text(f"This report covers {source.chosen.in_words()} of the run directory."))
    in_brief = brief.lines(source.groups, source.about, validity, found, len(source.undone))
    parts += [items(in_brief), heading("Validity"), text(head)]
    if problems:
        parts.append(items(problems))
    unseen = f" Nothing to judge by: {', '.join(validity.unchecked)}." if validity.unchecked else ""
    return [*parts, text(f"Checked: {', '.join(validity.checked)}.{unseen}")]


def _draw(folder: Path, source: _Source, found: Findings, validity: Validity) -> Iterator[Drawn]:
    """OSError if a PNG cannot be written."""
    groups, note, engine = source.groups, source.chosen.in_words(), source.about.engine
    axes, rows = [scatter.best_axis(groups)], found.associations
    invalid = validity.invalid(group.name for group in groups)
    yield from gallery.draw_all(folder, groups, source.samples, engine, rows, axes, note, invalid)
    yield from forced.pictures(found.forced, folder, engine, note, "; ".join(invalid.values()))


def _parts(source: _Source, found: Findings, pictures: _Pictures) -> list[str]:
    groups = source.groups
    of_router = pictures.of("heatmap", "cv-over-time", "rank-load")
    return [
        *_answer(found, source.about, source.asked),
        *_set_up(source.about),
        *_results(groups),
        *pictures.of("ecdf", "scatter"),
        *_associations(found.associations),
        heading("What the router did"),
        *(of_router or [text("No gate log of natural routing.")]),
        *router.parts(groups),
        *foretold.parts(groups),
        *pictures.of("prediction"),
        *forced.parts(found.forced, pictures.of("forced")),
        *replayed.parts(groups),
        *energy.parts(groups),
        *cost_section.parts(source.costs, source.unread),
        *pictures.of("step-time"),
        *_left_out(found, source.undone),
        *_repeat(source.about),
    ]


def _answer(found: Findings, about: About, asked: Registered) -> list[str]:
    compared = contrasts.about(asked) if found.comparisons else []
    sentences = [*found.sentences, *(line.removeprefix("* ") for line in compared), *found.caveats]
    if not about.gpus and not builtin.is_label(found.engine):
        sentences.append(NO_GPU)
    return [heading("Findings"), items(sentences), text(METHOD)]


def _set_up(about: About) -> list[str]:
    e, gpus = about.config.experiment, "; ".join(about.gpus) or "none seen"
    repeats = "1 repeat" if e.repeats == 1 else f"{e.repeats} repeats"
    facts = [
        f"engine: {about.engine}; model: {brief.served(about)}; started {about.started}",
        f"host: {about.host.system}, {about.host.cpus} CPUs; GPUs: {gpus}",
        f"{e.num_prompts} prompts a dataset, {e.output_len} output tokens, "
        f"request rate {e.request_rate}, max concurrency {e.max_concurrency or 'unlimited'}, "
        f"{repeats}, seed {e.seed}, datasets {'shuffled' if e.shuffle else 'in order'}",
        "versions: " + ", ".join(f"{name} {v}" for name, v in about.versions.items()),
    ]
    servers = [_server(name, note) for name, note in about.servers.items()]
    return [heading(SET_UP), items([*facts, *servers])]


def _server(name: str, note: ServerNote) -> str:
    """What the server reported of itself, and where that differs from what was requested."""
    ran = ", ".join(f"{key} {value}" for key, value in note.ran.items()) or "not reported"
    if not note.mismatches:
        return f"{name}: {ran}; ran as requested"
    return f"{name}: {ran}; NOT as requested: {'; '.join(note.mismatches)}"


def _results(groups: Sequence[Results]) -> list[str]:
    rows = []
    for group in groups:
        medians = summary.medians(group)
        figures = [shown(medians[key], form) for key, form in RESULT_FORMS.items()]
        rows.append([group.name, str(len(group.by_label)), *figures])
    note = text(f"Medians over runs. Every run: summary.csv.{_placed(groups)}")
    return [heading("Results"), table(RESULT_HEAD, rows), note]


def _placed(groups: Sequence[Results]) -> str:
    """The placements that the rank imbalance refers to."""
    ways = {
        group.name: sorted({m.placement for m in group.measured.values() if m.placement})
        for group in groups
    }
    known = "; ".join(f"{name}: {', '.join(found)}" for name, found in ways.items() if found)
    return f" Experts on ranks – {known}." if known else ""


def _associations(rows: Sequence[Row]) -> list[str]:
    lines = [
        line
        for row in rows
        for line in (
            _association(row, row.association, "all", row.verdict, p_value(row.p_holm)),
            _association(row, row.without, "without the most influential", "–", "–"),
        )
    ]
    note = (
        "change: of the metric, over the middle 80 % of the datasets' excess CV², in % of the "
        "metric's median. "
        "partial: Spearman with prompt and output token counts held fixed. "
        "The most influential points have a Cook's distance above 4/n. "
        "Only the association over all points is tested."
    )
    return [heading(AGAINST), table(ASSOCIATION_HEAD, lines), text(note)]


def _association(row: Row, of: Association, which: str, *verdict: str) -> list[str]:
    name, unit = results.NAMES[row.metric]
    return [
        row.backend,
        f"{name}, {unit}",
        which,
        str(of.n),
        of.spearman.shown(".2f"),
        of.pearson.shown(".2f"),
        row.in_percent(of.slope.scaled(row.span)).shown("+.1f"),
        of.explained.scaled(100).shown(".0f"),
        of.partial.shown(".2f"),
        shown(of.distance, ".2f"),
        p_value(of.p_holm),
        *verdict,
    ]


def _left_out(found: Findings, undone: Mapping[str, RunState]) -> list[str]:
    unfinished = [f"{i}: {r.phase}: {r.reason or 'not run'}" for i, r in undone.items()]
    unmeasured = [f"{run}: no excess CV²: {why}" for run, why in found.left_out.items()]
    parts = [heading(LEFT_OUT), items([*unfinished, *unmeasured] or ["none"])]
    return [*parts, text(SELECTED)] if unmeasured else parts


def _repeat(about: About) -> list[str]:
    note = f"run.json holds the whole configuration that was run. {_git_state(about)}".strip()
    return [heading("To repeat it"), code(shlex.join(_command(about))), text(note)]


def _command(about: About) -> list[str]:
    config = about.config
    command = ["gatescope", "--batch", "--config", str(config.path)]
    used = {run.dataset for run in about.runs}
    if len(used) < len(config.dataset_paths):
        command += ["--only", ",".join(sorted(used))]
    if len(about.backends) < len(config.backends):
        command += ["--backend", ",".join(about.backends)]
    if config.dose and config.dose.replay:
        command += ["--replay", config.dose.replay]
    if config.dose and config.dose.doses:
        command += ["--dose", ",".join(f"{level:g}" for level in config.dose.levels)]
        command += ["--pattern", ",".join(config.dose.patterns)]
    return command


def _git_state(about: About) -> str:
    if about.git is None or about.git.commit is None:
        return ""
    count = about.git.changed_files
    changed = f", {count} changed files" if count else ""
    return f"The config's directory was at git commit {about.git.commit}{changed}."
