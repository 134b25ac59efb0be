"""`gatescope predict --model` through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core import cli
from core.builtin import checkpoint

TEXTS = ["What is a router?", "Name a river that is longer than the Thames."]
CONFIG = """
[experiment]
datasets = "*.jsonl"
num_prompts = 2
[[backends]]
name = "wide"
tensor_parallel = 2
expert_parallel = true
max_num_seqs = 16
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    file = tmp_path / "001_0.5.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


def copied(folder: Path) -> Path:
    """The built-in model as `gatescope init --model` writes it."""
    folder.mkdir()
    for file in checkpoint.FOLDER.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_json_holds_figures_and_shares_of_every_layer(
    dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", "--model", "builtin", "--json", str(dataset)]) == 0
    out, err = capfd.readouterr()
    (found,) = json.loads(out).values()
    assert found["mode"] == "exact"
    assert found["tokens"] == sum(len(text) + 1 for text in TEXTS)  # BOS and the bytes
    assert found["layer_numbers"] == [0, 1, 2, 3]
    assert [sum(layer) for layer in found["loads"]] == pytest.approx([1.0] * 4)
    assert found["decode"] is None
    assert found["decode_reason"]
    assert "2 prompts, 63 tokens through 4 layers; memory: at most" in err
    assert "layer 4 of 4, 0:00 left" in err


def test_a_folder_with_the_built_in_weights_needs_no_torch(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(copied(tmp_path / "model"))
    given = ["--json", "--layers", "0-1", str(dataset)]
    assert cli.main(["predict", "--model", folder, *given]) == 0
    assert cli.main(["predict", "--model", "builtin", *given]) == 0
    decoder, out = json.JSONDecoder(), capsys.readouterr().out
    first, end = decoder.raw_decode(out)
    assert first == decoder.raw_decode(out[end:].strip())[0]
    assert first[str(dataset)]["layer_numbers"] == [0, 1]


def test_a_backend_plans_the_batch_and_the_ranks(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "experiments.toml"
    config.write_text(CONFIG)
    given = ["--model", "builtin", "--config", str(config), "--backend", "wide", str(dataset)]
    assert cli.main(["predict", *given]) == 0
    out = capsys.readouterr().out
    assert "at 63 tokens a step" in out  # both prompts in one
    assert "on the busiest rank, rank max/mean 1." in out
    assert cli.main(["predict", *given[:4], "--backend", "narrow", str(dataset)]) == 2
    assert "--backend narrow" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("no weights", "holds no weights"),
        ("quantised", "quantised weights"),
        ("no folder", "no config.json there"),
    ],
)
def test_a_model_that_cannot_be_asked_is_refused_with_the_reason(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, says: str
) -> None:
    folder = copied(tmp_path / "model")
    config = folder / "config.json"
    if change == "no weights":
        (folder / "model.safetensors").unlink()
    elif change == "quantised":
        about = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "fp8"}}
        config.write_text(json.dumps(about))
        (folder / "model.safetensors").write_bytes(b"of another size")
    else:
        config.unlink()
        (folder / "model.safetensors").unlink()
    assert cli.main(["predict", "--model", str(folder), str(dataset)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert says in err


def test_dummy_weights_of_the_config_are_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "experiments.toml"
    config.write_text(CONFIG + '[model]\nload_format = "dummy"\n')
    given = ["--model", "builtin", "--config", str(config), "--backend", "wide", str(dataset)]
    assert cli.main(["predict", *given]) == 2
    assert 'load_format = "dummy"' in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_left_out(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", "--model", "builtin", str(dataset), str(tmp_path / "no")]) == 1
    out, err = capsys.readouterr()
    assert "excess CV" in out
    assert "cannot be read" in err


@pytest.mark.parametrize("text", ["3-1", "a", "1-", "-1"])
def test_layers_that_are_no_span_are_refused(dataset: Path, text: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["predict", "--model", "builtin", f"--layers={text}", str(dataset)])
