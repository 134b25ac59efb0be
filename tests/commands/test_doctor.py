from __future__ import annotations

import os
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from support import fake_nvml

from core.backends import supervise
from core.commands import diagnosis, doctor
from core.commands.diagnosis import Finding

CONFIG = """
[experiment]
engine = "{engine}"
datasets = "*.jsonl"
[model]
id = "{model}"
[[backends]]
name = "baseline"
port = {port}
moe_backend = ""
tensor_parallel = 1
python = "{python}"
"""


def examined(
    folder: Path,
    *,
    engine: str = "builtin",
    python: str = "",
    port: int = 0,
    model: str = "org/name",
) -> dict[str, Finding]:
    (folder / "001_0.5.jsonl").write_text('{"prompt": "a"}\n')
    file = folder / "experiments.toml"
    file.write_text(
        CONFIG.format(engine=engine, python=python, port=port or free_port(), model=model)
    )
    return {finding.subject: finding for finding in diagnosis.examine(file)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fake_vllm(folder: Path, version: str, router: str) -> str:
    """An interpreter whose vLLM is of that version, with that text for its routers."""
    package = folder / "site" / "vllm"
    (package / "model_executor/layers/fused_moe/router").mkdir(parents=True)
    (package / "_version.py").write_text(f"__version__ = version = '{version}'\n")
    (package / "__init__.py").touch()
    (package / "model_executor/layers/fused_moe/router/base_router.py").write_text(router)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "site"} exec python3 "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_the_built_in_engine_needs_nothing(tmp_path: Path) -> None:
    found = examined(tmp_path)
    assert found["engine"].found == "builtin (NumPy, CPU)"
    assert (
        found["config"].found == f"{tmp_path / 'experiments.toml'}: backends baseline; 1 datasets"
    )
    assert [f.subject for f in found.values() if f.fix and f.subject != "terminal"] == []


def test_vllm_its_version_and_the_hook(tmp_path: Path) -> None:
    python = fake_vllm(tmp_path, "0.25.1", "    def set_capture_fn(self, capture_fn):")
    found = examined(tmp_path, engine="vllm", python=python)
    assert found["baseline"] == Finding(
        "baseline", f"vLLM 0.25.1 in {python}, router hook: set_capture_fn"
    )


def test_a_vllm_that_cannot_be_recorded_is_a_problem_with_a_fix(tmp_path: Path) -> None:
    found = examined(tmp_path, engine="vllm", python=fake_vllm(tmp_path, "0.99.0", ""))
    assert "router hook: none found" in found["baseline"].found
    assert "use a version from 0.11 to 0.33" in found["baseline"].fix


def test_an_interpreter_without_vllm_is_a_problem_only_where_vllm_was_requested_for(
    tmp_path: Path,
) -> None:
    assert examined(tmp_path, engine="vllm")["baseline"].fix.startswith(
        "install it there (pip install vllm)"
    )
    assert not examined(tmp_path, engine="auto")["baseline"].fix


def test_a_port_that_is_taken_names_its_fix(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        found = examined(tmp_path, port=port)[f"port {port}"]
    assert "is not free" in found.found
    assert found.fix.startswith("wait until it ends, choose another port, or set port = 0")


def test_more_ranks_than_visible_gpus_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvml.install(tmp_path, monkeypatch, fake_nvml.H200, fake_nvml.H200)
    text = CONFIG.replace('moe_backend = ""', 'moe_backend = "triton"')
    text = text.replace("tensor_parallel = 1", "tensor_parallel = 2")
    (tmp_path / "001_0.5.jsonl").write_text('{"prompt": "a"}\n')
    file = tmp_path / "experiments.toml"
    file.write_text(text.format(engine="vllm", python="", port=free_port(), model="org/name"))
    found = {finding.subject: finding for finding in diagnosis.examine(file)}
    assert found["GPUs"].fix == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    found = {finding.subject: finding for finding in diagnosis.examine(file)}
    assert found["GPUs"].found == "NVIDIA H200, 140 of 140 GiB free"
    assert found["GPUs"].fix.startswith("a backend needs 2: lower tensor_parallel")


def test_a_model_path_at_which_nothing_is(tmp_path: Path) -> None:
    found = examined(tmp_path, engine="vllm", model="./missing")
    assert found["model"].found == f"[model] id: there is no folder {tmp_path}/missing"
    assert found["model"].fix == "name a folder with config.json, or a model at the hub"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"moe_num_experts": 64, "moe_k": 6}', "64 experts a layer, top-6"),
        (
            '{"hidden_size": 8}',
            "its config.json does not name its experts and top-k: the MoE kernel gets no warm-up of"
            " its own",
        ),
    ],
)
def test_the_models_shape(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(config)
    assert examined(tmp_path, engine="vllm", model="model")["model"] == Finding("model", said)


def test_without_a_home_directory_everything_is_examined(tmp_path: Path) -> None:
    """No HOME, and a user that no passwd file knows."""
    examined(tmp_path, engine="vllm", model="~/models/tiny")
    code = (
        "import os, pwd, sys\n"
        "os.environ.pop('HOME', None)\n"
        "def unknown(*_): raise KeyError('no such user')\n"
        "pwd.getpwuid = pwd.getpwnam = unknown\n"
        "from core import cli\n"
        "sys.exit(cli.main(['doctor', '--config', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "experiments.toml")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "[model] id: there is no folder ~/models/tiny" in done.stdout
    assert " problems" in done.stdout


def test_a_model_folder_without_a_tokenizer(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    assert examined(tmp_path, engine="vllm", model=str(model))["tokenizer"].fix
    (model / "tokenizer.json").touch()
    assert examined(tmp_path, engine="vllm", model=str(model))["tokenizer"].found == str(
        model / "tokenizer.json"
    )


def test_a_broken_config_is_told_and_the_rest_is_examined(tmp_path: Path) -> None:
    found = [
        finding.subject for finding in diagnosis.examine(tmp_path / "none.toml") if finding.fix
    ]
    assert "config" in found
    subjects = [finding.subject for finding in diagnosis.examine(tmp_path / "none.toml")]
    assert {"Python", "GPUs", "terminal", "encoding"} <= set(subjects)


def test_each_mistake_in_the_config_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "experiments.toml"
    file.write_text(
        '[[backends]]\nname = "b"\nport = -1\n[experiment]\nseed = -1\ndatasets = "x"\n'
    )
    found = [finding for finding in diagnosis.examine(file) if finding.subject == "config"]
    assert [finding.found.removeprefix(f"{file}: ") for finding in found] == [
        "[[backends]] number 1, port: expected a whole number of at least 0, got -1",
        "[experiment], seed: expected a whole number of at least 0, got -1",
        "[experiment], datasets: expected a glob that matches files,"
        f" 'x' matches none in {tmp_path}",
    ]
    assert [finding.fix for finding in found] == [
        "correct it there",
        "correct it there",
        "make some with: gatescope generate",
    ]


def test_run_prints_a_fix_below_each_problem_and_tells_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [Finding("GPUs", "none"), Finding("port 1", "taken", "end it")]
    monkeypatch.setattr(diagnosis, "examine", lambda path: iter(findings))
    assert doctor.run(Namespace(config=tmp_path, on_node=None, executor="local")) == 1
    assert (
        capsys.readouterr().out
        == "✓ GPUs    none\n! port 1  taken\n          fix: end it\n1 problem\n"
    )
    monkeypatch.setattr(diagnosis, "examine", lambda path: iter(findings[:1]))
    assert doctor.run(Namespace(config=tmp_path, on_node=None, executor="local")) == 0


def test_servers_that_nobody_ends_are_named(tmp_path: Path) -> None:
    env = {**os.environ, supervise.MARK: f"{tmp_path}.1"}
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=env)
    try:
        named = examined(tmp_path)["leftovers"]
        assert str(left.pid) in named.found.split()
        assert named.fix.startswith("kill -9 ")
        # With a supervisor of the same mark beside it, it is looked after.
        keeper = [sys.executable, "-c", "import time; time.sleep(600)", supervise.__file__]
        supervisor = subprocess.Popen(keeper, env=env)
        try:
            assert left.pid not in [process.pid for process in supervise.orphans()]
        finally:
            supervisor.kill()
            supervisor.wait()
    finally:
        left.kill()
        left.wait()
