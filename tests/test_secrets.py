"""Keys stay where they belong, nothing goes through a shell, and files are private to their
owner."""

from __future__ import annotations

import ast
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.place import Place

from core.errors import ConfigError
from core.experiment import events

ROOT = Path(__file__).parents[1]
SOURCES = [file for folder in ("core", "tui") for file in sorted((ROOT / folder).rglob("*.py"))]
KEY = "VLLM_API_KEY"


def secrets_of(tree: list[psutil.Process]) -> set[str]:
    """Every server key in the environments of these processes."""
    return {key for process in tree if (key := process.environ().get(KEY))}


def test_a_server_s_key_is_in_its_own_environment_and_it_listens_here_only(tmp_path: Path) -> None:
    place = Place(tmp_path, output_len=300, num_prompts=3, max_concurrency=1)
    with place.running("--backend", "all2all", "--only", "001") as batch:
        batch.until(events.RequestFinished)
        tree = [p for p in batch.me.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        workers = [p for p in tree if "core.load.worker" in p.cmdline()]
        servers = [p for p in tree if p not in workers]
        (key,) = secrets_of(servers)
        assert len(workers) == 1
        assert secrets_of([batch.me, *workers]) == set()
        assert not [
            p.cmdline() for p in (batch.me, *tree) if any(key in word for word in p.cmdline())
        ]
        sockets = [p for p in place.made.rglob("*") if p.is_socket()]
        assert [stat.S_IMODE(p.stat().st_mode) for p in sockets] == [0o600]
        connections = [c for p in (batch.me, *tree) if p.is_running() for c in p.net_connections()]
        listening = {c.laddr.ip for c in connections if c.status == "LISTEN"}
        assert batch.drain() == 0
    assert len(key) == 32
    assert listening == {"127.0.0.1"}
    holding = [
        p.name for p in tmp_path.rglob("*") if p.is_file() and key.encode() in p.read_bytes()
    ]
    assert holding == []
    assert stat.S_IMODE(place.made.stat().st_mode) == 0o700
    assert stat.S_IMODE((place.made / "run.json").stat().st_mode) == 0o600


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a module, by the dotted name that it is written with."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


FORBIDDEN = {
    "os.system",
    "os.popen",
    "eval",
    "exec",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "marshal.loads",
}


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_no_shell_and_nothing_that_runs_data(file: Path) -> None:
    for name, call in calls(file):
        assert name not in FORBIDDEN, f"{file}:{call.lineno}"
        for word in call.keywords:
            is_on = not (isinstance(word.value, ast.Constant) and word.value.value is False)
            assert not (word.arg in ("shell", "allow_pickle", "trust_remote_code") and is_on), (
                f"{file}:{call.lineno}"
            )


# For labels, ids and names, and to find now in a log that another process stamps; never for
# durations.
CLOCK_USERS = {
    "core/builtin/app.py",
    "core/commands/exporter.py",
    "core/experiment/events.py",
    "core/routing/windows.py",
    "tui/model/session.py",
    "tui/watch.py",
}


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_durations_come_from_a_clock_that_is_never_set(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    names = {
        ast.unparse(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)
    }
    assert file.relative_to(ROOT).as_posix() in CLOCK_USERS or "time.time" not in names


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", ".hidden", "a\n", "x" * 81])
def test_a_backend_s_name_is_one_folder_of_the_run_directory(tmp_path: Path, name: str) -> None:
    from core.experiment import config

    place = Place(tmp_path)
    text = place.config.replace('name = "baseline"', f'name = "{name}"'.replace("\n", "\\n"))
    (tmp_path / "experiments.toml").write_text(text)
    with pytest.raises(ConfigError, match="name: expected at most 80 letters, digits"):
        config.load(tmp_path / "experiments.toml")


def test_a_model_s_own_code_is_run_only_where_asked_for_and_with_a_warning(tmp_path: Path) -> None:
    place = Place(tmp_path, output_len=2)
    asked = place.config.replace(
        'name = "all2all"', 'name = "all2all"\nextra_args = ["--trust-remote-code"]'
    )
    (tmp_path / "experiments.toml").write_text(asked)
    done = place.gatescope("--batch", "--out", "made", "--only", "001")
    warning = "! all2all: --trust-remote-code: code of the model's repository runs on this machine"
    assert f"{warning}, with your rights" in done.stderr
    assert "! baseline: --trust-remote-code" not in done.stderr
