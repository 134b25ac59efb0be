"""Which rules say that the figures so far are not what they are called, and what routing cost. Read
off the UI thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from core.errors import FileError
from core.experiment.state import RunState, Snapshot
from tui.model.client import findings_since, judged
from tui.model.view import Price

if TYPE_CHECKING:
    from core.validity.problem import Problem

AT_ONCE = 8  # results read in one look, so that a long run directory does not hold up the screen


class Verdicts:
    """By the findings of the whole run directory, once it has some; until then each result is
    judged by itself, when its run has ended."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._runs: dict[str, tuple[float, list[Problem]]] = {}  # when it ended, and what is wrong
        self.words = ""
        self.prices: Mapping[str, Price] = {}  # by backend/dataset

    def read(self, snapshot: Snapshot) -> None:
        """Judge what has ended since the last read."""
        done = {i: r for i, r in snapshot.runs.items() if r.result}
        found = findings_since(self.run_dir, max((r.ended_at for r in done.values()), default=0.0))
        problems = _of_all(*found) if found else None
        self.prices = _prices(*found) if found else {}
        if problems is None:
            new = [r for i, r in done.items() if r.ended_at != self._runs.get(i, (0.0,))[0]]
            self._runs |= {r.run.id: (r.ended_at, self._of_one(r)) for r in new[:AT_ONCE]}
            problems = [p for i in done if i in self._runs for p in self._runs[i][1]]
        self.words = _in_words(problems, {r.run.backend for r in done.values()})

    def _of_one(self, run: RunState) -> list[Problem]:
        from core.rundir import result
        from core.validity import verdict

        try:
            found = result.read(self.run_dir / run.result)
        except (OSError, FileError):
            return []
        return [p for p in verdict.of_result(run.run.id, found).problems if p.severity == "invalid"]


def _of_all(findings: Path, at_ns: int) -> list[Problem] | None:
    """None where they hold no verdict."""
    try:
        whole = judged(findings, at_ns)
    except (OSError, msgspec.DecodeError):
        return None
    return whole.problems if whole else None


@lru_cache(4)
def _prices(findings: Path, at_ns: int) -> Mapping[str, Price]:
    """What each dataset's routing cost at each backend, as the report says it."""
    from core.analysis import cost_sentences
    from core.analysis.routing_cost import BackendCost

    try:
        found = msgspec.json.decode(findings.read_bytes(), type=dict[str, msgspec.Raw])
        costs = msgspec.json.decode(found.get("routing_cost", b"[]"), type=list[BackendCost])
    except (OSError, msgspec.DecodeError):
        return {}
    return {
        f"{cost.backend}/{one.dataset}": Price(
            cost_sentences.of_dataset(one, cost.model),
            one.share.value,
            one.over_fair.excludes_zero,
        )
        for cost in costs
        for one in cost.datasets
        if one.over_fair.value is not None
    }


def _in_words(problems: list[Problem], backends: Iterable[str]) -> str:
    """`INVALID: answer lengths (all2all/001 and 2 more)`; empty if nothing is."""
    if not problems:
        return ""
    from core.validity.problem import Validity, joined

    found = Validity(problems=joined(problems), checked=[], unchecked=[]).invalid(sorted(backends))
    return f"INVALID: {'; '.join(found.values())}" if found else ""
