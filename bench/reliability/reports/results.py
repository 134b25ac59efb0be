"""Line B12: folders of results with a figure that nothing can have."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from bench.reliability.reports.case import Case, gatescope, wrong

CVS: dict[str, Any] = {f"gates_logs_{n:02d}": 0.3 + n / 10 for n in range(1, 9)}
NAN, INF = float("nan"), float("inf")


def plotted(odd: dict[str, Any], cvs: dict[str, Any], points: str, said: str, place: Path) -> str:
    """Eight results of which the third is `odd`, against CVS and `cvs`; the figure says `points`,
    stderr `said`."""
    folder = place / "with a blank"
    folder.mkdir()
    for n in range(1, 9):
        whole = {"num_prompts": 30, "completed": 30, "duration": 3.0, "mean_ttft_ms": 99.0 + n}
        more = odd if n == 3 else {}
        (folder / f"{n:03d}.json").write_text(json.dumps({**whole, **more}))
    mapping = place / "cv.json"
    mapping.write_text(json.dumps({**CVS, **cvs}))
    flags = ("--baseline-results", folder, "--baseline-imbalance", mapping, "--against", "real")
    answer = gatescope(place, "plot", *flags, "-o", "a.png")
    facts = {
        "exit code 0": answer.code == 0,
        points: f"\n{points}\n" in answer.out,
        said: said in answer.err,
    }
    return wrong(facts, answer)


ALL, LESS = "n = 8", "n = 7; 1 without both values"
FIGURES: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("good", {}, {}, ALL, ""),
    ("NaN metric", {"mean_ttft_ms": NAN}, {}, LESS, "mean_ttft_ms is NaN"),
    ("infinite metric", {"mean_ttft_ms": INF}, {}, LESS, "mean_ttft_ms is Infinity"),
    ("negative metric", {"mean_ttft_ms": -1.0}, {}, LESS, "mean_ttft_ms is -1.0"),
    ("null metric", {"mean_ttft_ms": None}, {}, LESS, ""),
    ("NaN elsewhere", {"mean_tpot_ms": NAN}, {}, ALL, "mean_tpot_ms is NaN"),
    ("infinite rate", {"request_rate": INF}, {}, ALL, ""),
    ("negative CV", {}, {"gates_logs_03": -0.2}, LESS, "CV of gates_logs_03 is -0.2"),
    ("NaN CV", {}, {"gates_logs_03": NAN}, LESS, "CV of gates_logs_03 is NaN"),
    ("a CV twice", {}, {"gates_logs_3": 9.9}, LESS, "gates_logs_03 and gates_logs_3"),
    ("CV of 0", {}, {"gates_logs_03": 0.0}, ALL, ""),
]
CASES = [
    Case("B12", name, partial(plotted, odd, cvs, points, said))
    for name, odd, cvs, points, said in FIGURES
]
