"""`gatescope serve` and `gatescope bench`, against each other."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.place import GATESCOPE, LIMIT_S, UPSTREAM_KEYS, Place, is_closed


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("VLLM_API_KEY", "of the tests")
    return Place(tmp_path)


@pytest.fixture
def served(place: Place) -> Iterator[str]:
    """The URL of a `gatescope serve baseline`, which is ended as a shell would and leaves
    nothing."""
    server = subprocess.Popen(
        [*GATESCOPE, "serve", "baseline"], cwd=place.folder, stdout=subprocess.PIPE
    )
    guard = threading.Timer(LIMIT_S, server.kill)
    guard.start()
    assert server.stdout
    url = next(line.split()[1].decode() for line in server.stdout if line.startswith(b"ready: "))
    yield url
    server.terminate()
    assert server.wait() == 143
    assert is_closed(place.ports[0])
    guard.cancel()
    server.stdout.close()


class TestBench:
    DATASET = "datasets/002_0.5000.jsonl"

    def test_sends_each_prompt_once_and_writes_one_result(self, place: Place, served: str) -> None:
        assert served == f"http://127.0.0.1:{place.ports[0]}"
        asked = ["--num-prompts", "3", "--output-len", "5", "--result-dir", "results", "--json"]
        answer = place.gatescope("bench", self.DATASET, "--base-url", served, *asked)
        assert answer.returncode == 0, answer.stderr
        result = json.loads(answer.stdout)
        assert [p.name for p in (place.folder / "results").iterdir()] == ["002.json"]
        assert json.loads((place.folder / "results" / "002.json").read_bytes()) == result
        assert (result["completed"], result["output_lens"], result["dataset_name"]) == (
            3,
            [5, 5, 5],
            "002",
        )
        assert set(UPSTREAM_KEYS.split()) - {"tokenizer_id"} <= result.keys()
        counted = httpx.get(f"{served}/metrics", trust_env=False).text
        (generated,) = [
            line
            for line in counted.splitlines()
            if line.startswith("vllm:generation_tokens_total{")
        ]
        assert float(generated.split()[-1]) == 3 * 5

        unknown = place.gatescope(
            "bench", self.DATASET, "--port", str(place.ports[0]), "--model", "nobody"
        )
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "404" in unknown.stderr

    def test_without_a_server_is_one_line(self, place: Place) -> None:
        answer = place.gatescope("bench", self.DATASET, "--port", str(place.ports[0]))
        assert (answer.returncode, answer.stdout) == (2, "")
        url = f"http://127.0.0.1:{place.ports[0]}"
        assert answer.stderr.startswith(
            f"gatescope: {url}/v1/models: no model named there (ConnectError: "
        )
        assert len(answer.stderr.splitlines()) == 1


def test_serve_says_why_its_server_died(place: Place) -> None:
    config = place.folder / "experiments.toml"
    config.write_text(
        place.config.replace(
            'name = "baseline"', 'name = "baseline"\nextra_args = ["--no-such-flag"]'
        )
    )
    answer = place.gatescope("serve", "baseline")
    assert answer.returncode == 1
    assert "error: unrecognized arguments: --no-such-flag" in answer.stdout
    (death,) = answer.stderr.splitlines()
    assert death.startswith("server baseline exited with code 2 after ")
    assert death.endswith(" s: the server does not know --no-such-flag; see extra_args")


def test_serve_without_a_key_shows_a_new_one_to_a_terminal_only(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_API_KEY")
    answer = place.gatescope("serve", "baseline")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(
        "gatescope: serve: VLLM_API_KEY is not set, and there is no terminal"
    )

    ours, theirs = os.openpty()
    command = [*GATESCOPE, "serve", "baseline"]
    with subprocess.Popen(
        command, cwd=place.folder, stdout=subprocess.PIPE, stderr=theirs
    ) as server:
        os.close(theirs)
        assert server.stdout
        url = next(
            line.split()[1].decode() for line in server.stdout if line.startswith(b"ready: ")
        )
        told = os.read(ours, 4096).decode()
        assert told.startswith("~ key of this server: export VLLM_API_KEY=")
        header = {"Authorization": f"Bearer {told.strip().rpartition('=')[2]}"}
        answers = [
            httpx.get(f"{url}/v1/models", headers=h, trust_env=False).status_code
            for h in ({}, header)
        ]
        server.terminate()
    os.close(ours)
    assert answers == [401, 200]


def test_serve_refuses_a_taken_port_and_an_unknown_backend(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", place.ports[0]))
        taken.listen()
        answer = place.gatescope("serve", "baseline")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert f"[[backends]] baseline, port: {place.ports[0]} is not free" in answer.stderr
    answer = place.gatescope("serve", "baseline", "--batch-tokens", "4")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(
        "gatescope: serve baseline, max_num_batched_tokens: expected at least max_num_seqs"
    )
    answer = place.gatescope("serve", "base")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(
        "gatescope: experiments.toml: no backend 'base'; known: baseline, all2all"
    )


def test_serve_ignores_what_it_was_started_to_ignore(place: Place) -> None:
    shell = ["sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh"]
    with subprocess.Popen(
        [*shell, *GATESCOPE, "serve", "baseline"],
        cwd=place.folder,
        stdout=subprocess.PIPE,
        env={**os.environ, "VLLM_API_KEY": "k"},
    ) as server:
        guard = threading.Timer(LIMIT_S, server.kill)
        guard.start()
        assert server.stdout
        assert any(line.startswith(b"ready: ") for line in server.stdout)
        server.send_signal(signal.SIGINT)
        server.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(1.0)
        server.terminate()
        assert server.wait() == 143
        guard.cancel()
