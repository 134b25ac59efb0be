"""`gatescope advise --prove`: the two servers that it starts, and a prediction against results."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from commands.test_advise import SKEWED, logs

from bench.sweep import simulated
from core import cli
from core.analysis import proof
from core.analysis.advice import Option
from core.analysis.calibration import Calibration
from core.analysis.cost_model import ROWS, CostModel
from core.backends import vllm
from core.backends.vllm import Installed
from core.errors import UsageError
from core.experiment.tables import Backend, Model
from core.stats import estimate
from core.stats.estimate import Estimate

DATASETS = Path(__file__).parents[2] / "datasets"
EPLB = Option(name="EPLB", spare=4, saved=Estimate(5.0), saved_ms=None, moved=1, bytes=None)


def test_the_two_servers() -> None:
    backends = [Backend(name="tp"), Backend(name="ep", expert_parallel=True, extra_args=["--x"])]
    asked = simulated.config_of(backends, starts=1, split=True)
    made = proof.pair(asked, "", 3, EPLB)
    assert [b.name for b in made.backends] == ["ep", "ep-eplb"]
    assert (made.experiment.starts, made.experiment.split) == (3, False)
    installed = Installed("python", "0.30.0")
    without, with_it = (vllm.arguments(b, Model(), 0, installed) for b in made.backends)
    added = ["--eplb-config", '{"num_redundant_experts":4}']
    assert [word for word in with_it if word not in without] == ["--enable-eplb", *added]
    assert set(without) < set(with_it)


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("tp", {}, "tp has no expert parallelism"),
        ("none", {}, "name one backend"),
        ("ep", {"extra_args": ["--enable-eplb"]}, "has --enable-eplb in extra_args"),
        ("ep", {"extra_args": ["--eplb-config={}"]}, "sets --eplb-config itself"),
    ],
)
def test_a_backend_that_cannot_be_proved(name: str, more: dict[str, list[str]], said: str) -> None:
    backends = [Backend(name="tp"), Backend(name="ep", expert_parallel=True, **more)]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=said):
        proof.pair(simulated.config_of(backends), name, 3, EPLB)


def results(path: Path, *factors: float) -> Path:
    """Three starts of two datasets, with steps of 10 ms; with EPLB, times `factors`."""
    sides = {
        "ep": {n: {"001": [8.0], "002": [12.0]} for n in range(1, 4)},
        "ep-eplb": {n: {"001": [8.0 * f], "002": [12.0 * f]} for n, f in enumerate(factors, 1)},
    }
    simulated.write(path, sides)
    journal = path / "events.jsonl"
    (file,) = DATASETS.glob("001_*.jsonl")
    journal.write_text(journal.read_text().replace('"file":""', f'"file":"{file}"'))
    return path


def test_the_error_is_kept_and_shown_next_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terms = {"rows": Estimate(5.0)}
    decode = CostModel(phase="decode", by=ROWS, terms=terms)
    prefill = CostModel(phase="prefill", reason="no prompts")
    found = Calibration(backend="b", engine="e", made="now", decode=decode, prefill=prefill)
    (tmp_path / "c.json").write_bytes(msgspec.json.encode(found))
    run = results(tmp_path / "run", 0.95, 0.96, 0.97)
    words = ["advise", str(logs(tmp_path / "logs", SKEWED, steps=450))]
    words += ["--calibration", str(tmp_path / "c.json")]
    assert cli.main([*words, "--prove", "--run", str(run)]) == 0
    capsys.readouterr()
    assert cli.main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (kept,) = said["proofs"]
    replicated = said["decode"]["options"][1]
    assert kept["predicted"] == replicated["saved"]
    assert (kept["spare"], kept["starts"], kept["metric"]) == (2, [3, 3], "decode_step_ms")
    assert kept["measured"]["value"] == pytest.approx(4.0, abs=0.01)
    low, high = kept["measured"]["interval"]
    assert high - low == pytest.approx(2 * 0.96 * 2.776 * (1 / 96 / 3**0.5) * 100, rel=0.05)
    assert cli.main(words) == 0
    error = kept["predicted"]["value"] - kept["measured"]["value"]
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("proved 20")]
    assert line.endswith(f": off by {error:+.2f} points")


def test_without_a_calibration_the_load_is_what_was_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = results(tmp_path / "run", 0.9, 0.9, 0.9)
    for file in run.rglob("results_json/*.json"):
        kept = json.loads(file.read_text())
        ratio = 1.6 if file.parts[-3] == "ep" else 1.2
        phase = {
            "steps": 1, "tokens": 1, "per_step_cv": 1, "noise_floor": None, "excess_cv": None,
            "excess_cv_reason": "", "excess_cv_interval": None, "layer_cv": 1,
            "rank_imbalance": ratio,
        }  # fmt: skip
        kept["measured_imbalance"] = {"decode": phase}
        file.write_text(json.dumps(kept))
    words = ["advise", str(logs(tmp_path / "logs", SKEWED, steps=450)), "--prove"]
    assert cli.main([*words, "--run", str(run)]) == 0
    out = capsys.readouterr().out.splitlines()[-1]
    assert out.startswith(
        "EPLB with 2 spare, of the busiest ranks' load in decode: predicted 48.96"
    )
    assert "measured 25.00 [25.00, 25.00] %: off by +23.96 points" in out


def test_the_built_in_engine_has_no_eplb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments.toml").write_text(
        f'[experiment]\nengine = "builtin"\ndatasets = "{DATASETS}/001_*.jsonl"\n'
        '[[backends]]\nname = "ep"\nexpert_parallel = true\n'
    )
    words = ["advise", str(logs(tmp_path / "logs", SKEWED, steps=450)), "--prove"]
    words += ["--config", str(tmp_path / "experiments.toml"), "--run", str(tmp_path / "run")]
    assert cli.main(words) == 2
    assert "the built-in engine has no EPLB" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_start_has_no_interval() -> None:
    one = proof.Proof(
        made="", run="", spare=2, metric=proof.STEP, predicted=Estimate(5.0),
        measured=estimate.none("no ratio"), starts=(1, 1),
    )  # fmt: skip
    assert one.in_words().endswith("predicted 5.00 %, measured – % (no ratio)")
