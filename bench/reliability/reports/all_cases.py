"""Tries every case of the modules, two at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.reliability.reports import (
    client,
    commands,
    datasets,
    doors,
    gate_logs,
    machine,
    results,
    suite,
)
from bench.reliability.reports.case import Case

MODULES = (client, doors, datasets, machine, gate_logs, results, commands, suite)


def outcomes(folder: Path) -> dict[str, str]:
    """`A1 hidden_tail` → "" if it gives what is expected, else what was seen."""
    cases = [case for module in MODULES for case in module.CASES]
    with client.server(), ThreadPoolExecutor(2) as pool:
        seen = list(pool.map(lambda numbered: _try(folder, *numbered), enumerate(cases)))
    return {f"{case.line} {case.name}": what for case, what in zip(cases, seen, strict=True)}


def _try(folder: Path, number: int, case: Case) -> str:
    place = folder / f"{number:03d}"
    place.mkdir()
    try:
        return case.seen(place)
    except Exception as error:  # a case that cannot be tried is one that does not hold
        return f"{type(error).__name__}: {error}"
