"""`gatescope record`: the command is itself, whatever it does, and the recorder is in its
environment."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.running import eventually

from core.backends import ports, recording, vllm
from core.builtin.spared import SparedWriter
from core.recorder.gatescope_recorder.gatelog import Header, Step
from core.recorder.gatescope_recorder.limits import Limits
from core.recorder.gatescope_recorder.parts import Parts
from core.routing import folder as gate_folder
from core.routing.gatelog import GateLog

ROOT = Path(__file__).parents[2]
SHELL: dict[str, str] = {
    "exits 0": "echo out; echo err >&2",
    "exits 1": "echo err >&2; exit 1",
    "exits 42": "exit 42",
    "exits 255": "exit 255",
    "ends by SIGTERM": "kill -TERM $$",
    "ends by SIGKILL": "kill -KILL $$",
    "ends by SIGINT": "kill -INT $$",
    "ends by SIGSEGV": "kill -SEGV $$",
    "ends by SIGHUP": "kill -HUP $$",
    "catches SIGTERM": 'trap "exit 7" TERM; kill -TERM $$; sleep 60',
    "writes bytes": r"printf '\377\000\033[1m'; printf '\200' >&2",
    "is left by its reader": "(sleep 0.1; yes) | head -1; grep SigIgn /proc/self/status",
}


def record(out: Path, *words: str, options: tuple[str, ...] = ()) -> list[str]:
    program = [sys.executable, "-m", "core.cli", "record", "--out", str(out), *options]
    return [*program, "--", *words]


def ran(
    command: list[str], stdin: bytes = b"", env: dict[str, str] | None = None
) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        env={**os.environ, **(env or {})},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("script", SHELL.values(), ids=SHELL)
def test_exit_code_signal_and_output_are_the_commands_own(script: str, tmp_path: Path) -> None:
    words = ("sh", "-c", script)
    assert ran(record(tmp_path, *words)) == ran(list(words))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_it_is_one_to_the_command(number: int, tmp_path: Path) -> None:
    script = f'trap "exit 33" {number}; touch {tmp_path}/up; while :; do sleep 0.05; done'
    process = subprocess.Popen(
        record(tmp_path / "logs", "sh", "-c", script),
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # which nohup and & ignore
    )
    try:
        eventually((tmp_path / "up").exists)
        process.send_signal(number)
        assert process.wait(30) == 33
    finally:
        process.kill()
        process.wait()


def test_the_command_reads_our_stdin_and_gets_its_words(tmp_path: Path) -> None:
    words = ("sh", "-c", 'cat; printf "%s|" "$@"', "name", "--", "a b", "-x", "--out", "")
    assert ran(record(tmp_path, *words), b"in") == (0, b"in--|a b|-x|--out||", b"")


@pytest.mark.parametrize(
    ("words", "code"), [(("no-such-program",), 127), ((str(ROOT / "README.md"),), 126)]
)
def test_a_command_that_cannot_be_run_is_one_line(
    words: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    found, out, err = ran(record(tmp_path, *words))
    assert (found, out, err.count(b"\n")) == (code, b"", 1)


def test_without_a_command_nothing_runs(tmp_path: Path) -> None:
    code, _, err = ran(record(tmp_path))
    assert (code, b"no command" in err, any(tmp_path.iterdir())) == (2, True, False)


def environment(out: Path, *options: str, env: dict[str, str] | None = None) -> dict[str, str]:
    code, said, _ = ran(record(out, "env", "-0", options=options), env=env)
    assert code == 0
    return dict(entry.decode().split("=", 1) for entry in said.split(b"\0") if entry)


def test_what_is_added_to_the_environment(tmp_path: Path) -> None:
    given = {"PYTHONPATH": "/mine", "VLLM_PLUGINS": "other", "LC_ALL": "", "LANG": "C"}
    bare = dict(os.environ) | given
    found = environment(tmp_path, "--rotate", "10m", "--sample", "1/10", env=given)
    limits = {"part_bytes": 0, "part_s": 600.0, "keep_bytes": 10**10, "sample": 10}
    assert json.loads(found.pop("GATESCOPE_RECORD")) == limits
    assert found.pop("GATESCOPE_GATE_LOGS") == str(tmp_path / "gate_logs")
    assert found.pop("PYTHONPATH") == f"{vllm.RECORDER}:/mine"
    assert found.pop("VLLM_PLUGINS") == "other,gatescope_recorder"
    assert found == {key: value for key, value in bare.items() if key in found}
    assert set(bare) - set(found) == {"PYTHONPATH", "VLLM_PLUGINS"}


def test_each_start_has_a_folder_and_the_oldest_files_make_room(tmp_path: Path) -> None:
    for number, name in enumerate(("gate_logs", "gate_logs-start2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dp0_pp0.gatelog").write_bytes(b"x" * 600)
        os.utime(tmp_path / name / "dp0_pp0.gatelog", (number, number))
    found = environment(tmp_path, "--keep", "2kB")
    assert found["GATESCOPE_GATE_LOGS"] == str(tmp_path / "gate_logs-start3")
    assert json.loads(found["GATESCOPE_RECORD"])["keep_bytes"] == 1400  # what the second leaves
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gate_logs-start2", "gate_logs-start3"]


def test_where_it_cannot_record_the_command_runs_and_one_line_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = ran(record(tmp_path / "file", "echo", "hi"))
    assert (code, out) == (0, b"hi\n")
    assert (
        err.decode() == f"gatescope: not recorded: {tmp_path}/file/gate_logs: cannot be written:"
        " Not a directory\n"
    )


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_what_speaks_against_a_command(tmp_path: Path) -> None:
    ours = sys.executable  # has no vLLM
    assert recording.doubt([ours, "-m", "core.builtin.server"]) == ""
    assert recording.doubt([script(tmp_path / "gatescope", f"#!{ours}\n"), "serve"]) == ""
    for head in (f"#!{ours}\n", f"#!/bin/sh\n'''exec' \"{ours}\" \"$0\" \"$@\"\n' '''\n"):
        assert "has no vLLM" in recording.doubt([script(tmp_path / "vllm", head), "serve"])
    assert "ignores PYTHONPATH" in recording.doubt([ours, "-sE", "serve.py"])
    assert "has no vLLM" in recording.doubt([ours, "serve.py", "-E"])
    assert "does not pass" in recording.doubt([script(tmp_path / "docker", "#!/bin/sh\n"), "run"])
    assert recording.doubt([script(tmp_path / "serve", "#!/bin/sh\nvllm serve x\n")]) == ""


def test_the_builtin_engine_is_recorded_too(tmp_path: Path) -> None:
    """Every second step, and each whole; then what a launched server logs of the same requests."""
    logs: list[GateLog] = []
    for name in ("recorded", "launched"):
        port, folder = ports.free(), tmp_path / name / "gate_logs"
        server = [sys.executable, "-m", "core.builtin.server", "--port", str(port)]
        if name == "recorded":
            command = record(folder.parent, *server, options=("--sample", "1/2"))
        else:
            folder.mkdir(parents=True)
            command = [*server, "--gate-log", str(folder / "dp0_pp0.gatelog")]
        env = {**os.environ, "VLLM_API_KEY": ""}
        with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE) as process:
            url = f"http://127.0.0.1:{port}"
            eventually(partial(answers, url))
            body = {"prompt": "Once upon a time", "max_tokens": 11, "temperature": 0}
            said = httpx.post(f"{url}/v1/completions", json=body, trust_env=False, timeout=30)
            assert said.status_code == 200
            process.terminate()
            assert process.stderr
            assert b"not recorded" not in process.stderr.read()
        assert process.returncode == 0
        logs.append(gate_folder.read(folder))
    recorded, launched = logs
    assert launched.columns["index"].tolist() == list(range(11))
    assert recorded.columns["index"].tolist() == list(range(0, 11, 2))
    assert (recorded.loads == launched.loads[::2]).all()
    assert gate_folder.header(tmp_path / "recorded" / "gate_logs").sample == 2  # type: ignore[union-attr]


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_what_goes_wrong_with_the_log_costs_the_record_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = SparedWriter(tmp_path / "dp0_pp0.gatelog", Header("e", "m", 1, 2, 1), Limits())
    step = Step(0, 0, 1, 2, 0, 2, 1, {}, np.array([[1, 1]]))
    writer.append(step)
    writer.flush()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(*_: object) -> None:
        raise full

    monkeypatch.setattr(Parts, "write", write)
    for _ in range(2):
        writer.append(step)
        writer.flush()
    writer.close()
    assert capsys.readouterr().err == f"gatescope recorder: disabled: OSError: {full}\n"
    assert len(gate_folder.read(tmp_path).tokens) == 1
    assert gate_folder.problems(tmp_path) == [f"dp0_pp0: OSError: {full}"]
