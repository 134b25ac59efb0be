"""The rules in the order in which they are reported, and the verdict on a run directory, a result
or gate logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from core.analysis.comparand import Comparand
from core.analysis.results import Results
from core.routing.imbalance import Imbalance
from core.rundir.result import Result
from core.rundir.selection import ALL, Selection
from core.validity import drift, evidence, problem, routing, servers, traffic
from core.validity.problem import Rule, Validity

RULES: tuple[Rule, ...] = (
    servers.as_requested,
    servers.idle_nodes,
    servers.missing_logs,
    servers.one_version,
    servers.tuned_kernels,
    servers.prefix_caching,
    servers.preemptions,
    traffic.readable_results,
    traffic.possible_figures,
    traffic.failed_runs,
    traffic.failed_requests,
    traffic.answer_lengths,
    traffic.equal_work,
    traffic.window,
    traffic.client_limits,
    traffic.delivery_lag,
    routing.measured_routing,
    routing.recorder_reports,
    routing.random_prompts,
    routing.recorded_tokens,
    routing.one_token_steps,
    routing.constant_loads,
    routing.same_cv,
    routing.sums_of_loads,
    routing.number_of_steps,
    routing.stalled_steps,
    routing.missing_layers,
    routing.missing_ranks,
    drift.one_node,
    drift.throttled_gpus,
    drift.gpu_clocks,
    drift.gpu_temperatures,
    drift.drift_over_time,
)


def of_run_directory(path: Path, groups: Sequence[Results], chosen: Selection = ALL) -> Validity:
    """Of the chosen datasets, whose results `groups` are. FileError as
    `evidence.of_run_directory`."""
    return problem.check(evidence.of_run_directory(path, groups, chosen), RULES)


def invalid(side: Path, cells: Sequence[Comparand]) -> Iterator[str]:
    """What is invalid in the cells of a sweep, or in a run directory, at `side`."""
    for path, found in _of_each(cells):
        for one in found.problems:
            if one.severity == "invalid":
                yield f"{path if path == side else path.relative_to(side)}: {one.in_words()}"


def invalid_rules(cells: Sequence[Comparand]) -> str:
    """Each rule that makes figures of these cells invalid, and which: `same CV (a, b)`; empty where
    none does."""
    where: dict[str, list[str]] = {}
    for path, found in _of_each(cells):
        for cell in (cell for cell in cells if cell.path == path):
            for one in found.problems:
                if one.severity == "invalid" and one.of_backend(cell.backend):
                    where.setdefault(one.rule, []).append(cell.name)
    return "; ".join(f"{rule} ({', '.join(names)})" for rule, names in where.items())


def _of_each(cells: Sequence[Comparand]) -> Iterator[tuple[Path, Validity]]:
    """Each run directory that cells are of, and what is wrong there."""
    for path in dict.fromkeys(cell.path for cell in cells):
        groups = [cell.group for cell in cells if cell.path == path]
        yield path, of_run_directory(path, groups)


def of_results(groups: Sequence[Results]) -> Validity:
    """Folders of results with upstream's imbalance mappings, whoever wrote them."""
    return problem.check(evidence.of_results(groups), RULES)


def of_result(run: str, result: Result) -> Validity:
    """One run's result by itself."""
    return problem.check(evidence.of_result(run, result), RULES)


def of_gate_logs(folder: Path, found: Mapping[str, Imbalance]) -> Validity:
    """What core.routing.imbalance.measure_folder found in `folder`, ours or upstream's."""
    return problem.check(evidence.of_gate_logs(folder, found), RULES)
