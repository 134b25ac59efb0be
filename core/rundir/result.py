"""Result files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from core.experiment import dose
from core.rundir.about import _checked

LABEL = re.compile(r"[0-9]{3,}(-r[0-9]+)?")


class _Measured(msgspec.Struct):
    """The part of a result's imbalance that readers take apart."""

    excess_cv_reason: str | None = None
    rank_imbalance: float | None = None
    rank_loads: list[float] | None = None
    intervals: dict[str, tuple[float, float] | None] | None = None


class _Result(msgspec.Struct):
    """The part of a result file that readers take apart; what stands alone is taken as a number, or
    as none."""

    mean_ttft_ms: float | None = None
    mean_tpot_ms: float | None = None
    mean_e2e_ms: float | None = None
    ttfts: list[float | None] | None = None
    itls: list[list[float]] | None = None
    output_lens: list[int] | None = None
    measured_imbalance: _Measured | None = None


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Label → result of every `<label>.json` in a results folder, forced routing included.
    FileError for a file that is no result."""
    return {label: _checked(file, _Result) for label, file in sorted(result_files(folder).items())}


def result_files(folder: Path) -> dict[str, Path]:
    """Label → file of every result in a results folder, read or not."""
    found = {p.stem: p for p in folder.glob("*.json") if LABEL.fullmatch(p.stem.partition("~")[0])}
    return {
        label: path for label, path in found.items() if "~" not in label or dose.of_label(label)
    }
