"""Result files of any tool with a NaN, an infinite or a negative figure: that figure is unknown and
named, everything else is drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from core import cli

NAN, INF = math.nan, math.inf
LABELS = [f"{n:03d}" for n in range(1, 9)]
CVS: dict[str, Any] = {f"gates_logs_{n:02d}": 0.3 + n / 10 for n in range(1, 9)}


def write_results(folder: Path, odd: dict[str, Any]) -> Path:
    """Eight results; `odd` stands in the third one too."""
    folder.mkdir()
    for place, label in enumerate(LABELS):
        result = {
            "num_prompts": 30,
            "completed": 30,
            "duration": 3.0,
            "mean_ttft_ms": 100.0 + place,
        }
        (folder / f"{label}.json").write_text(json.dumps(result | (odd if label == "003" else {})))
    return folder


def plotted(
    place: Path, capsys: pytest.CaptureFixture[str], odd: dict[str, Any], cvs: dict[str, Any]
) -> tuple[str, str]:
    """The number of points, and what stderr says."""
    folder = write_results(place / "r", odd)
    (place / "cv.json").write_text(json.dumps(cvs))
    flags = ["--baseline-results", str(folder), "--baseline-imbalance", str(place / "cv.json")]
    assert cli.main(["plot", *flags, "--against", "real", "-o", str(place / "a.png")]) == 0
    out, err = capsys.readouterr()
    (counted,) = [line for line in out.splitlines() if line.startswith("n = ")]
    return counted, err


@pytest.mark.parametrize(
    ("odd", "points", "said"),
    [
        ({"mean_ttft_ms": NAN}, "n = 7; 1 without both values", "mean_ttft_ms is NaN"),
        ({"mean_ttft_ms": INF}, "n = 7; 1 without both values", "mean_ttft_ms is Infinity"),
        ({"mean_ttft_ms": -4.5}, "n = 7; 1 without both values", "mean_ttft_ms is -4.5"),
        ({"mean_tpot_ms": NAN}, "n = 8", "mean_tpot_ms is NaN"),
        ({"output_throughput": -1}, "n = 8", "output_throughput is -1.0"),
        ({"completed": NAN}, "n = 8", "completed is NaN"),
        ({"ttfts": [0.1, -0.1, NAN]}, "n = 8", "2 of ttfts"),
        ({"itls": [[0.01, NAN], [-0.01]]}, "n = 8", "2 of itls"),
        ({"measured_imbalance": {"excess_cv": -0.2}}, "n = 8", "excess_cv is -0.2"),
    ],
)
def test_a_figure_that_nothing_can_have_is_unknown_and_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    odd: dict[str, Any],
    points: str,
    said: str,
) -> None:
    counted, err = plotted(tmp_path, capsys, odd, CVS)
    assert counted == points
    assert f"possible figures: baseline/003: taken as unknown: {said}; all other figures" in err
    assert "unreadable" not in err


@pytest.mark.parametrize("rate", [INF, "inf"])
def test_an_infinite_request_rate_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: object
) -> None:
    counted, err = plotted(tmp_path, capsys, {"request_rate": rate, "delivery_lag_ms": -3.0}, CVS)
    assert (counted, err) == ("n = 8", f"wrote {tmp_path}/a.png\n")


def test_an_excess_below_0_is_possible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    below_0 = {"measured_imbalance": {"excess_squared": -0.01}}
    _, err = plotted(tmp_path, capsys, below_0, CVS)
    assert "possible figures" not in err


@pytest.mark.parametrize(
    ("cvs", "said"),
    [
        ({"gates_logs_03": -0.2}, "CV of gates_logs_03 is -0.2"),
        ({"gates_logs_03": NAN}, "CV of gates_logs_03 is NaN"),
        ({"gates_logs_03": INF}, "CV of gates_logs_03 is Infinity"),
        (
            {"gates_logs_3": 9.9},
            "CV stands there as gates_logs_03 and gates_logs_3, with different values",
        ),
    ],
)
def test_a_cv_that_nothing_can_have_is_unknown_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cvs: dict[str, Any], said: str
) -> None:
    counted, err = plotted(tmp_path, capsys, {}, {**CVS, **cvs})
    assert counted == "n = 7; 1 without both values"
    assert err.count(said) == 1
    assert "possible figures: baseline/003: taken as unknown: " in err


@pytest.mark.parametrize(
    "text", ['{"mean_ttft_ms": NaN', '{"mean_ttft_ms": nan}', '{"a": NaN, "date": "\\ud83d"}']
)
def test_what_is_no_json_apart_from_that_stays_unreadable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    write_results(tmp_path / "r", {})
    (tmp_path / "r" / "003.json").write_text(text)
    flags = ["--baseline-results", str(tmp_path / "r"), "-o", str(tmp_path / "a.png")]
    cli.main(["plot", *flags, "--against", "real"])
    assert "INVALID readable results: baseline/003: unreadable: " in capsys.readouterr().err
