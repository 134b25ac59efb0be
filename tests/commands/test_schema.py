"""`gatescope schema`: editors check experiments.toml by it, tools read results by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli

from core import cli
from core.commands import schema

ROOT = Path(__file__).parents[2]


def printed(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main(["schema", name]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def test_the_file_beside_experiments_toml_is_what_the_command_prints() -> None:
    """Refresh it with: gatescope schema > experiments.schema.json"""
    assert (ROOT / "experiments.schema.json").read_text(encoding="utf-8") == schema.text("config")
    first = (ROOT / "experiments.toml").read_text(encoding="utf-8").splitlines()[0]
    assert first == "#:schema ./experiments.schema.json"


def test_our_experiments_toml_is_valid_and_a_mistake_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    validator = jsonschema.Draft202012Validator(printed("config", capsys))
    ours = tomli.loads((ROOT / "experiments.toml").read_text(encoding="utf-8"))
    assert list(validator.iter_errors(ours)) == []
    mistakes: list[dict[str, Any]] = [
        {"experiment": {"output_lenn": 3}},
        {"experiment": {"output_len": 0}},
        {"experiment": {"name": "a b"}},
        {"backends": [{"name": "b", "port": "8000"}]},
        {"backends": [{}]},
    ]
    assert all(list(validator.iter_errors(mistake)) for mistake in mistakes)


def test_every_key_says_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed("config", capsys)["$defs"]["Experiment"]["properties"]
    assert found["output_len"]["description"] == "tokens that each request generates (ignore_eos)"
    assert all("description" in value or "$ref" in value for value in found.values())


@pytest.mark.parametrize("backend", ["baseline", "all2all"])
def test_a_kept_result_and_its_run_are_valid(
    backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = ROOT / "bench" / "results" / "h200-x2"
    for name, file in (
        ("result", run_dir / backend / "results_json" / "001.json"),
        ("run", run_dir / "run.json"),
    ):
        validator = jsonschema.Draft202012Validator(printed(name, capsys))
        assert list(validator.iter_errors(json.loads(file.read_text()))) == []
