"""`gatescope calibrate` on the built-in engine, whose steps are made to cost what a rule says."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.place import GATESCOPE, LIMIT_S, PROMPTS

from core.analysis import calibration
from core.backends import ports
from core.errors import FileError
from core.rundir import about as run_json

STEP_US, REQUEST_US, ACTIVE_US = 2000, 100, 800
CONFIG = f"""[experiment]
engine = "builtin"
[[backends]]
name = "paced"
port = {{port}}
tensor_parallel = 1
max_num_seqs = 8
extra_args = ["--pace", "{STEP_US},{REQUEST_US},{ACTIVE_US}"]
"""


class Calibrated:
    """One calibration of 7 runs of 6 requests, and what it wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "datasets").mkdir()
        rows = [json.dumps({"text": text}) for text in PROMPTS]
        (folder / "datasets" / "001.jsonl").write_text("\n".join(rows))
        (folder / "experiments.toml").write_text(CONFIG.format(port=ports.free()))
        self.env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        self.done = self.gatescope("calibrate", "paced", "--sizes", "6", "--out", "made")
        assert self.done.returncode == 0, self.done.stderr
        self.found: dict[str, Any] = json.loads((folder / "made/calibration.json").read_bytes())

    def gatescope(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*GATESCOPE, *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    return Calibrated(tmp_path_factory.mktemp("calibrate"))


def test_the_cost_of_an_active_expert_is_recovered(calibrated: Calibrated) -> None:
    """A busy machine ends steps late, by as much whatever is active; so the slope is known."""
    decode = calibrated.found["decode"]
    assert (decode["by"], decode["runs"], decode["left_out"]) == (
        "active experts and tokens",
        7,
        "run",
    )
    cost = decode["terms"]["active"]["value"]
    assert 0.6 * ACTIVE_US < cost < 1.6 * ACTIVE_US
    assert decode["terms"]["fixed"]["value"] > 0


def test_steps_of_runs_that_were_left_out_are_predicted(calibrated: Calibrated) -> None:
    best, *rivals = calibrated.found["decode"]["qualities"]
    assert best["by"] == "active experts and tokens"
    assert best["r2"] > 0.8
    assert rivals[-1]["by"] == "the batch alone"
    assert best["r2"] > rivals[-1]["r2"] + 0.3
    lines = calibrated.done.stdout.splitlines()
    assert lines[0].startswith(
        "paced, decode steps, by active experts and tokens (its kernel publishes no tiling): "
    )
    assert "each run left out in turn: R² " in lines[1]
    assert (
        lines[2] == "paced, prefill steps: no cost model: " + calibrated.found["prefill"]["reason"]
    )


def test_it_forces_few_experts_beside_hot_ones_at_equal_cv(calibrated: Calibrated) -> None:
    made = sorted(p.stem for p in (calibrated.folder / "made/paced/results_json").glob("*.json"))
    levels = ["0.52", "1.04", "1.56"]
    forced = [f"006~{p}~{level}" for p in ("few-experts", "hot-experts") for level in levels]
    assert made == ["006", *forced]


def test_it_is_kept_for_later_runs(calibrated: Calibrated) -> None:
    (kept,) = (calibrated.folder / "cache/gatescope/calibrations").glob("*.json")
    assert json.loads(kept.read_bytes()) == calibrated.found
    assert calibrated.found["price_list"] is None
    assert calibrated.found["no_prices"] == "the built-in engine's kernel is not timed alone"


def test_a_place_that_cannot_keep_it_is_named(
    calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = calibrated.folder / "made"
    found, about = calibration.read(made), run_json.read(made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "run.json"))
    with pytest.raises(FileError, match=r"run.json/gatescope/.*: cannot be written: Not a dir"):
        calibration.keep(found, about)
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as without any home
    with pytest.raises(FileError, match="no home directory to keep measurements in"):
        calibration.keep(found, about)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nobody",), "there is no backend 'nobody'"),
        (("paced", "--sizes", "0"), "expected a whole number of at least 1"),
        (("paced", "--out", "made"), "--out must be new or empty"),
    ],
)
def test_a_mistake_starts_nothing(
    calibrated: Calibrated, arguments: tuple[str, ...], said: str
) -> None:
    done = calibrated.gatescope("calibrate", *arguments)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_any_gate_log_is_priced_by_it(calibrated: Calibrated) -> None:
    """A whole run directory, and a folder of logs alone: the same figures."""
    logs = calibrated.folder / "made" / "paced" / "gate_logs"
    for place in ("made", str(logs)):
        done = calibrated.gatescope("imbalance", place, "--calibration", "made")
        assert done.returncode == 0, done.stderr
        priced, cost = done.stdout.splitlines()[-2:]
        assert priced.startswith("priced by made: paced, builtin (NumPy, CPU), made 20")
        assert "/006 costs " in cost
        assert " a step, " in cost
    done = calibrated.gatescope("imbalance", "made", "--calibration", "made", "--json")
    assert (done.returncode, "in words only" in done.stderr) == (2, True)


def test_a_report_says_how_well_the_calibration_predicts(calibrated: Calibrated) -> None:
    done = calibrated.gatescope("report", "made")
    assert done.returncode == 0, done.stderr
    text = (calibrated.folder / "made" / "report.md").read_text()
    assert "paced, calibrated on 20" in text
    assert "the median steps of 7 runs are predicted with R² " in text
    assert "| paced | 006 | 47 | " in text
