"""The report in five lines: what ran, whether to trust it, the router, the cost, the backends."""

from __future__ import annotations

from collections.abc import Sequence

from core.analysis.findings import HEADLINE, Findings
from core.analysis.results import NAMES, Results
from core.backends import builtin
from core.rundir.about import About
from core.stats.descriptive import median
from core.terminal import shown
from core.validity.problem import Validity


def lines(
    groups: Sequence[Results], about: About, validity: Validity, found: Findings, undone: int
) -> list[str]:
    """One line each; those on cost and on backends are of the metric that was registered."""
    metric = about.registered.metric if about.registered else HEADLINE
    compared = [c.in_words(NAMES[metric][0]) for c in found.comparisons if c.metric == metric]
    return [
        f"Ran: {_ran(groups, about, undone)}",
        f"Trust: {_trust(validity)}",
        f"Router: {'; '.join(_router(group) for group in groups)}",
        f"Cost: {'; '.join(row.brief for row in found.associations if row.metric == metric)}",
        f"Backends: {'; '.join(compared) or 'one ran, so there is nothing to compare'}",
    ]


def served(about: About) -> str:
    """The model that ran, which the config does not name where the built-in engine has its own."""
    return builtin.MODEL_NAME if about.engine_kind == "builtin" else about.config.model.id


def _ran(groups: Sequence[Results], about: About, undone: int) -> str:
    done = sum(len(group.by_label) + len(group.imposed) for group in groups)
    missing = f", {undone} not done" if undone else ""
    names = ", ".join(group.name for group in groups)
    return f"{served(about)} on {about.engine}; {done} runs done{missing}, at {names}"


def _trust(validity: Validity) -> str:
    head = validity.in_words()[0].removeprefix("validity: ")
    wrong: dict[str, list[str]] = {}
    for problem in validity.problems:
        wrong.setdefault(problem.severity, []).append(problem.rule)
    return "; ".join([head, *(f"{how}: {', '.join(rules)}" for how, rules in wrong.items())])


def _router(group: Results) -> str:
    """How many runs of a backend show an excess CV, and how large it is in those."""
    measured = group.measured.values()
    if not measured:
        return f"{group.name}: no run with natural routing was recorded"
    seen = [m.excess_cv for m in measured if m.excess_cv is not None]
    of_these = f" (median {shown(median(seen), '.3f')})" if seen else ""
    return f"{group.name} shows an excess CV in {len(seen)} of {len(measured)} runs{of_these}"
