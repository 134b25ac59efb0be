"""`gatescope init`, in a checkout and from the wheel."""

from __future__ import annotations

import filecmp
from pathlib import Path

import pytest

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
