"""`gatescope init`, in a checkout and from the wheel."""

from __future__ import annotations

import filecmp
from pathlib import Path

import numpy as np
import pytest

from core import cli
from core.builtin import checkpoint
from core.builtin.checkpoint import FOLDER
from core.builtin.weights import Shape
from core.errors import FileError
from core.experiment import config, plan
from core.workload import starter

ROOT = Path(__file__).parents[2]


def test_init_writes_what_the_main_job_needs(tmp_path: Path) -> None:
    names = ["experiments.toml", "experiments.schema.json", "datasets"]
    assert starter.write(tmp_path) == [tmp_path / name for name in names]
    for name in names[:2]:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()
    compared = filecmp.dircmp(ROOT / "datasets", tmp_path / "datasets", ignore=[])
    assert not compared.left_only + compared.right_only + compared.diff_files
    assert len(plan.make(config.load(tmp_path / "experiments.toml")).runs) == 100


@pytest.mark.parametrize("name", ["experiments.toml", "experiments.schema.json", "datasets"])
def test_init_replaces_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileError, match=f"{name} exists"):
        starter.write(tmp_path)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


def test_init_also_writes_the_built_in_engines_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert cli.main(["init", "--model", "../tiny"]) == 0
    told = capsys.readouterr().err
    assert "wrote ../tiny\n" in told
    assert f'for vLLM to serve this model, set [model] id = "{tmp_path / "tiny"}"' in told
    names = {"config.json", "generation_config.json", "model.safetensors"}
    names |= {"tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in (tmp_path / "tiny").iterdir()} == names
    for name in names:
        assert (tmp_path / "tiny" / name).read_bytes() == (FOLDER / name).read_bytes()
    written = checkpoint.read(tmp_path / "tiny", Shape())
    assert np.array_equal(written.router, checkpoint.read(FOLDER, Shape()).router)
    assert {p.name for p in Path().iterdir()} == {*starter.FILES, "datasets"}


@pytest.mark.parametrize("name", ["full", "file", "datasets"])
def test_a_models_folder_must_be_its_own_and_nothing_is_written_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/mine").touch()
    Path("file").touch()
    with pytest.raises(FileError, match=f"--model {name}: expected a new or empty folder"):
        starter.write(Path(), Path(name))
    assert {p.name for p in Path().iterdir()} == {"full", "file"}
    assert [p.name for p in Path("full").iterdir()] == ["mine"]


def test_init_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"file: cannot be written: Not a directory$"):
        starter.write(tmp_path / "file")


def test_generate_reads_the_queries_beside_the_datasets_else_its_own(tmp_path: Path) -> None:
    assert (
        starter.queries_file(tmp_path).read_bytes()
        == (ROOT / "datasets" / "domain_queries.json").read_bytes()
    )
    (tmp_path / "domain_queries.json").write_text("{}")
    assert starter.queries_file(tmp_path) == tmp_path / "domain_queries.json"
