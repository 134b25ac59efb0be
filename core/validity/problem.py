"""A problem that a rule found, and the verdict over all rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from core.validity.evidence import Evidence

T = TypeVar("T")
Severity = Literal["invalid", "doubtful"]


class Problem(Struct, frozen=True, kw_only=True):
    """One thing that is wrong. invalid: figures are not what they are called; doubtful: they may be
    off.

    `where`: runs, backends, GPUs or folders; where there are several, `sentence` speaks of the
    first, by name if it is not true of all.
    """

    severity: Severity
    where: list[str]
    sentence: str
    remedy: str
    rule: str = ""  # filled in by `check`

    def in_words(self) -> str:
        """One line."""
        word = "INVALID " if self.severity == "invalid" else ""
        return f"{word}{self.rule}: {shown(self.where)}: {self.sentence}; {self.remedy}"

    def of_backend(self, name: str) -> str:
        """The rule and where in this backend it found a problem; empty if it did not."""
        own = [place for place in self.where if place.partition("/")[0] == name]
        return f"{self.rule} ({shown(own)})" if own else ""

    def concerns(self, run: str) -> bool:
        """Whether it is about the run, or about the whole of its backend."""
        backend = run.partition("/")[0]
        whole = (place.partition("/") for place in self.where)
        return run in self.where or any(
            b == backend and not label[:1].isdigit() for b, _, label in whole
        )


UPPER = {"gpu": "GPU", "gpus": "GPUs", "cv": "CV"}
# What is wrong, or None where there is nothing to judge by.
Rule = Callable[[Evidence], Iterable[Problem] | None]


class Validity(Struct, frozen=True, kw_only=True):
    """`checked`: rules that had something to look at; `unchecked`: those that had not."""

    problems: list[Problem]
    checked: list[str]
    unchecked: list[str]

    @property
    def is_invalid(self) -> bool:
        return any(problem.severity == "invalid" for problem in self.problems)

    def of(self, place: str) -> list[str]:
        """The rule and severity of each problem that a run or folder has."""
        return [
            f"{problem.severity}: {problem.rule}"
            for problem in self.problems
            if place in problem.where
        ]

    def invalid(self, backends: Iterable[str]) -> dict[str, str]:
        """Backend → the rules that say that its figures are not what they are called:
        `same CV (all2all)`; those of which none does are left out."""
        worst = [problem for problem in self.problems if problem.severity == "invalid"]
        found = {name: [p.of_backend(name) for p in worst] for name in backends}
        return {name: "; ".join(filter(None, said)) for name, said in found.items() if any(said)}

    def in_words(self) -> list[str]:
        """`validity: 20 checks, none failed`; or how many failed, and a line for each problem."""
        failed = len({problem.rule for problem in self.problems})
        outcome = f"{failed} failed" if failed else "none failed"
        head = f"validity: {len(self.checked)} checks, {outcome}"
        return [head, *(f"  {problem.in_words()}" for problem in self.problems)]


def check(evidence: Evidence, rules: Sequence[Rule]) -> Validity:
    """A rule is called by its function's name. Problems of one rule and severity are joined, the
    worst come first."""
    wrong: list[Problem] = []
    checked: list[str] = []
    unchecked: list[str] = []
    for rule in rules:
        name = rule_name(rule)
        found = rule(evidence)
        (unchecked if found is None else checked).append(name)
        wrong += [replace(problem, rule=name) for problem in found or ()]
    return Validity(problems=joined(wrong), checked=checked, unchecked=unchecked)


def rule_name(rule: Rule) -> str:
    """`gpu_clocks` → "GPU clocks"."""
    return " ".join(UPPER.get(word, word) for word in rule.__name__.split("_"))


def problems(
    severity: Severity | Callable[[T], Severity],
    over: Mapping[str, T],
    wrong: Callable[[T], str],
    remedy: str,
) -> list[Problem] | None:
    """A problem for each of `over` that `wrong` has a sentence for; None where there is nothing to
    judge."""
    if not over:
        return None
    found = [(name, what, text) for name, what in over.items() if (text := wrong(what))]
    return [
        Problem(
            severity=severity(what) if callable(severity) else severity,
            where=[name],
            sentence=text,
            remedy=remedy,
        )
        for name, what, text in found
    ]


def shown(where: Sequence[str]) -> str:
    """`baseline/001 and 2 more, all2all/001`: the first of each backend."""
    by_backend: dict[str, list[str]] = defaultdict(list)
    for place in where:
        by_backend[place.partition("/")[0] if "/" in place else ""].append(place)
    return ", ".join(
        f"{first}{f' and {len(more)} more' if more else ''}" for first, *more in by_backend.values()
    )


def joined(problems: Iterable[Problem]) -> list[Problem]:
    """One problem for each rule and severity, the worst first."""
    groups: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[problem.rule, problem.severity].append(problem)
    return sorted(map(_as_one, groups.values()), key=lambda problem: problem.severity != "invalid")


def _as_one(group: Sequence[Problem]) -> Problem:
    first = group[0]
    alike = len({problem.sentence for problem in group}) == 1
    sentence = first.sentence if alike else f"{first.sentence} ({first.where[0]})"
    return replace(
        first, where=[place for problem in group for place in problem.where], sentence=sentence
    )
