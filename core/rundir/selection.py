"""Which datasets of a run directory are looked at: all of them, or those that --only names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from core.experiment import plan
from core.rundir import about as run_json
from core.rundir import result

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Selection:
    """`names`: the chosen of `total` datasets, in order; all of them where it is empty."""

    names: tuple[str, ...] = ()
    total: int = 0

    def has(self, run: str) -> bool:
        """Whether a run, by its id or its label, is of a chosen dataset."""
        return not self.names or plan.dataset_of(run) in self.names

    def of(self, by_run: Mapping[str, T]) -> dict[str, T]:
        """What is kept by run, of the chosen datasets alone."""
        return {run: kept for run, kept in by_run.items() if self.has(run)}

    @property
    def named(self) -> str:
        noun = "dataset" if len(self.names) == 1 else "datasets"
        return f"{noun} {', '.join(self.names)}"

    def in_words(self) -> str:
        """`only datasets 001, 007 (2 of 50)`; nothing where all are looked at."""
        return f"only {self.named} ({len(self.names)} of {self.total})" if self.names else ""

    def folder(self, run_dir: Path) -> Path:
        """Where what is made of these alone belongs: `RUN_DIR/only-001-007`; the run directory
        where that is all."""
        return run_dir / "-".join(("only", *self.names)) if self.names else run_dir


ALL = Selection()


def of_run_directory(path: Path, only: Collection[str]) -> Selection:
    """What `only` names of the datasets that were to be run or have results; `ALL` where it names
    none.

    UsageError for a name that none of them has, and where `path` is no run directory.
    """
    if not only:
        return ALL
    about = run_json.read(path)
    known = {run.dataset for run in about.runs}
    for backend in about.backends:
        labels = result.result_files(path / backend / "results_json")
        known |= {plan.dataset_of(label) for label in labels}
    return Selection(tuple(plan.named(only, sorted(known))), len(known))
