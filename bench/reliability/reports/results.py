"""Line B12: folders of results with a figure that nothing can have."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from bench.reliability.reports.case import Answer, Case, gatescope, wrong

CVS: dict[str, Any] = {f"gates_logs_{n:02d}": 0.3 + n / 10 for n in range(1, 9)}
NAN, INF = float("nan"), float("inf")


LABELS = [f"{n:03d}" for n in range(1, 9)]
WHOLE = {"num_prompts": 30, "completed": 30, "duration": 3.0}


def plot(place: Path, sets: dict[str, list[str]], cvs: object, odd: dict[str, Any]) -> Answer:
    """A scatter of these labels' results of each backend, of which 003 is `odd`."""
    mapping = place / "cv.json"
    mapping.write_text(json.dumps(cvs))
    flags: list[object] = []
    for backend, labels in sets.items():
        folder = place / f"{backend} with a blank"
        folder.mkdir()
        for n, label in enumerate(labels, 1):
            more = odd if label == "003" else {}
            ttft = {"mean_ttft_ms": 99.0 + n}
            (folder / f"{label}.json").write_text(json.dumps({**WHOLE, **ttft, **more}))
        flags += [f"--{backend}-results", folder, f"--{backend}-imbalance", mapping]
    return gatescope(place, "plot", *flags, "--against", "real", "-o", "a.png")


def plotted(odd: dict[str, Any], cvs: dict[str, Any], points: str, said: str, place: Path) -> str:
    """Eight results of which the third is `odd`, against CVS and `cvs`; the figure says `points`,
    stderr `said`."""
    answer = plot(place, {"baseline": LABELS}, {**CVS, **cvs}, odd)
    facts = {
        "exit code 0": answer.code == 0,
        points: f"\n{points}\n" in answer.out,
        said: said in answer.err,
    }
    return wrong(facts, answer)


def compared(
    baseline: list[str], all2all: list[str], cvs: object, code: int, said: str, place: Path
) -> str:
    """Results of two backends against one mapping; `said` by the figure or on stderr."""
    answer = plot(place, {"baseline": baseline, "all2all": all2all}, cvs, {})
    facts = {f"exit code {code}": answer.code == code, said: said in answer.out + answer.err}
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
    ("zero metric", {"mean_ttft_ms": 0.0}, {}, ALL, ""),
    ("huge range", {}, {"gates_logs_03": 1e-9, "gates_logs_04": 1e6}, ALL, ""),
    ("CV of 0", {}, {"gates_logs_03": 0.0}, ALL, ""),
]
STAMPED = [f"vllm-infqps-mixtral-{label}" for label in LABELS]
OTHERS = {f"dataset_{n}": 0.4 for n in range(1, 9)}
TEXTS = {key: str(value) for key, value in CVS.items()}
OBJECTS = {key: {"cv": value} for key, value in CVS.items()}
SETS: list[tuple[str, list[str], list[str], object, int, str]] = [
    ("good", LABELS, LABELS, CVS, 0, "\nn = 16\n"),
    ("equal CVs", LABELS, LABELS, dict.fromkeys(CVS, 0.5), 0, "INVALID same CV"),
    ("one point", LABELS[:1], LABELS[:1], CVS, 0, "\nn = 2\n"),
    ("different sets", LABELS[:5], LABELS[3:], CVS, 0, "\nn = 10\n"),
    ("disjoint sets", LABELS[:4], LABELS[4:], CVS, 0, "\nn = 8\n"),
    ("names without zeros", [*"12345678"], [*"12345678"], CVS, 2, "holds no results (001.json"),
    ("names of vLLM's own benchmark", STAMPED, STAMPED, CVS, 2, "holds no results (001.json"),
    ("a mapping of other names", LABELS, LABELS, OTHERS, 2, "no result has both 'mean_ttft_ms'"),
    ("a mapping of texts", LABELS, LABELS, TEXTS, 2, "cv.json: not as gatescope writes it"),
    ("a mapping of objects", LABELS, LABELS, OBJECTS, 2, "cv.json: not as gatescope writes it"),
]
CASES = [
    *(
        Case("B12", name, partial(plotted, odd, cvs, points, said))
        for name, odd, cvs, points, said in FIGURES
    ),
    *(
        Case("B12", f"two backends: {name}", partial(compared, one, two, cvs, code, said))
        for name, one, two, cvs, code, said in SETS
    ),
]
