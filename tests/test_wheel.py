"""The wheel and the sdist: what they carry, and that each works in an empty environment and
directory, without a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.watched import free_port

from core.workload.starter import FILES

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not shutil.which("uv"), reason="building a wheel needs uv")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that uv built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(["uv", "build", "--quiet", "--out-dir", folder, ROOT], check=True)
    return folder


@pytest.fixture(params=["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def gatescope(built: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The console script of a new environment that holds the package and what it depends on."""
    venv = tmp_path / "venv"
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, venv], check=True)
    python = venv / "bin" / "python"
    (package,) = built.glob(request.param)
    subprocess.run(  # uv reads the pins where it is started
        ["uv", "pip", "install", "--quiet", "--python", python, package], cwd=ROOT, check=True
    )
    where = subprocess.run(
        [python, "-c", "import core; print(core.__file__)"], cwd=tmp_path, capture_output=True
    )
    assert where.stdout.decode().startswith(str(venv))
    return venv / "bin" / "gatescope"


def shrink(file: Path, port: int) -> None:
    """Give the experiment a port that is free here, and little to send."""
    text = file.read_text()
    for old, new in {
        "port = 8000": f"port = {port}",
        "output_len = 50": "output_len = 4",
        "num_prompts = 30": "num_prompts = 4",
        "warmup_requests = 8": "warmup_requests = 1",
    }.items():
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def sources() -> set[str]:
    return {
        str(file.relative_to(ROOT))
        for top in ("core", "tui")
        for file in (ROOT / top).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_wheel_carries_the_packages_and_the_starter_files(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert sources() <= names
    starter = {f"core/starter_files/datasets/{p.name}" for p in (ROOT / "datasets").iterdir()}
    starter |= {f"core/starter_files/{name}" for name in FILES}
    assert starter == {n for n in names if "starter_files" in n}
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"core", "tui"}


def test_the_sdist_carries_what_the_wheel_and_the_tests_are_made_of(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tests = {str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("*.py")}
    datasets = {f"datasets/{p.name}" for p in (ROOT / "datasets").iterdir()}
    assert sources() | tests | datasets | {*FILES, "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith(("bench/results", ".ci"))]


def test_an_empty_directory_needs_nothing_else(gatescope: Path, tmp_path: Path) -> None:
    """`gatescope init`, and the main job on its first dataset."""
    work = tmp_path / "work"
    work.mkdir()
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [gatescope, *arguments], cwd=work, env=env, capture_output=True, text=True, timeout=120
        )

    done = run("init")
    assert (done.returncode, done.stdout) == (0, "")
    assert {p.name for p in work.iterdir()} == {*FILES, "datasets"}
    shrink(work / "experiments.toml", free_port())
    done = run("--batch", "--only", "001", "--engine", "builtin", "--out", "made")
    assert done.returncode == 0, done.stderr
    assert sorted(str(p.relative_to(work / "made")) for p in (work / "made").rglob("001.json")) == [
        "all2all/results_json/001.json",
        "baseline/results_json/001.json",
    ]
    assert len(list((work / "made" / "graphs").glob("*.png"))) >= 3
