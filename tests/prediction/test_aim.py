"""Datasets that aim at an excess CV of the built-in model's router."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core import cli
from core.errors import DatasetError
from core.prediction import aim, exact
from core.prediction.builtin_stack import BuiltinStack
from core.routing import expected
from core.routing.expected import Planned

ROOT = Path(__file__).parents[2]


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    monkeypatch.setattr(aim, "PER_KIND", 6)
    whole = json.loads((ROOT / "datasets" / "domain_queries.json").read_text())
    return {domain: whole[domain][:16] for domain in ("cooking", "history", "music")}


def test_prompts_reach_their_targets_and_are_natural_where_they_can_be(
    tmp_path: Path, queries: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "domain_queries.json").write_text(json.dumps(queries))
    given = ["--out", "made", "--model", "builtin", "--target-excess", "0.3,0.5"]
    monkeypatch.setattr("core.commands.generate._draw", lambda scores: Path("none"))
    assert cli.main(["generate", *given]) == 0
    listed = json.loads((tmp_path / "made" / "metadata.json").read_text())
    assert [entry["excess_cv"] for entry in listed] == pytest.approx([0.3, 0.5], abs=0.01)
    rows = [
        [json.loads(line) for line in (tmp_path / "made" / e["file"]).read_text().splitlines()]
        for e in listed
    ]
    assert all(len(row) == 30 for row in rows)
    assert {row["category"] for row in rows[0]} <= {"cooking", "history", "music"}
    assert all(row["text"] in queries[row["category"]] for row in rows[0])
    assert "words" in {row["category"] for row in rows[1]}
    assert len({row["text"] for row in rows[0]}) == 30


def test_the_dataset_has_the_excess_of_unalike_tokens(queries: dict[str, list[str]]) -> None:
    stack = BuiltinStack()
    (made,) = aim.aim(stack, queries, [0.3], queries_per_dataset=12)
    routed = exact.route(stack, [stack.tokens(text) for text in made.texts])
    found = expected.prefill(routed.forecast(), Planned())
    assert found.excess_cv == pytest.approx(made.excess_cv, abs=1e-9)
    assert made.excess_cv == pytest.approx(0.3, abs=0.01)


def test_a_target_out_of_reach_names_the_range(queries: dict[str, list[str]]) -> None:
    with pytest.raises(DatasetError, match=r"of 2\.0: they reach 0\.\d\d to 0\.\d\d"):
        aim.aim(BuiltinStack(), queries, [2.0], queries_per_dataset=12)


@pytest.mark.parametrize(
    "given", [["--model", "builtin"], ["--target-excess", "0.3"]], ids=["model", "target"]
)
def test_model_and_target_go_together(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", *given]) == 2
    assert "go together" in capsys.readouterr().err
