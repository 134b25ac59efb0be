"""The server as a process: how it starts, how it refuses to, and how it ends, wished for or not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import Any

import psutil
import pytest
from support.running import DEADLINE_S, KEY, Running, eventually, server

FOUR_RANKS = ("--data-parallel-size", 4, "--enable-expert-parallel")
LONG: dict[str, Any] = {"prompt": "on and on", "max_tokens": 4000, "ignore_eos": True}


def is_gone(process: psutil.Process) -> bool:
    """Ended; an orphan may stay as a zombie where nothing like init reaps."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def refusal(*options: str) -> tuple[int, str]:
    """Exit code and words of a server that does not start."""
    command = [sys.executable, "-m", "core.builtin.server", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    return done.returncode, done.stderr


class TestStart:
    def test_help_imports_no_numpy(self) -> None:
        """The BLAS reads its number of threads when NumPy is imported: the options must come
        first."""
        command = [sys.executable, "-X", "importtime", "-m", "core.builtin.server", "--help"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE_S, check=True
        )
        assert "--enable-expert-parallel" in done.stdout
        imported = {
            line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
        }
        assert "argparse" in imported
        assert not imported & {"numpy", "starlette", "uvicorn", "httpx"}

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ("--max-num-seqs 0", "--max-num-seqs must be at least 1"),
            ("--port 70000", "--port must be"),
            (
                "--max-num-seqs 8 --max-num-batched-tokens 7",
                "--max-num-batched-tokens must be at least --max-num-seqs",
            ),
            ("--data-parallel-size 2", "--data-parallel-size needs --enable-expert-parallel"),
            ("--tensor-parallel-size 5", "their number must divide the intermediate size, 288"),
            (
                "--tensor-parallel-size 16 --enable-expert-parallel",
                "their number must divide the experts, 8",
            ),
            (
                "--max-num-seqs 1000000 --max-num-batched-tokens 1000000 --max-model-len 1000000",
                "lower --max-num-seqs",
            ),
            ("--gate-log /dev/null/x", "File exists: '/dev/null'"),
        ],
    )
    def test_what_cannot_be_served_is_refused_in_one_line(self, options: str, said: str) -> None:
        code, words = refusal(*options.split())
        assert code == 2
        assert said in words.splitlines()[-1]
        assert "Traceback" not in words

    def test_a_port_in_use_is_an_error(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            code, words = refusal("--port", str(taken.getsockname()[1]))
        assert code
        assert "address already in use" in words


class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_open_streams_ranks_and_server(self, number: signal.Signals) -> None:
        with server(*FOUR_RANKS) as running:
            ranks = running.ranks()
            assert len(ranks) == 3
            with running.stream(**LONG) as stream:
                next(stream)
                os.killpg(running.process.pid, number)  # to the ranks too, as ctrl-c does
                *_, last = stream
            assert (last["error"]["code"], last["error"]["message"]) == (
                503,
                "The engine has stopped.",
            )
            code, said = running.end()
            assert (code, said) == (0, f"{number.name}: stopping\n")
            assert all(is_gone(rank) for rank in ranks)

    def test_a_client_that_leaves_in_the_middle_of_its_request_leaves_no_trace(self) -> None:
        with server() as running:
            with socket.create_connection(
                (running.client.base_url.host, running.client.base_url.port or 0)
            ) as half:
                head = (
                    f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
                )
                half.sendall(f'{head}Content-Length: 99\r\n\r\n{{"prompt": "a'.encode())
            assert running.post(prompt="a", max_tokens=1).status_code == 200
            running.process.terminate()
            assert running.end() == (0, "SIGTERM: stopping\n")

    def test_a_rank_killed_in_the_middle_of_a_stream_ends_the_server(self) -> None:
        with server(*FOUR_RANKS) as running:
            with running.stream(**LONG) as stream:
                next(stream)
                killed = self.kill_a_rank(running)
                *_, last = stream
            assert last["error"]["code"] == 503
            self.assert_dead(running, killed)

    def test_a_rank_killed_while_nothing_runs_ends_the_server_too(self) -> None:
        with server(*FOUR_RANKS) as running:
            self.assert_dead(running, self.kill_a_rank(running))

    def test_no_rank_outlives_a_killed_server(self) -> None:
        with server(*FOUR_RANKS) as running:
            ranks = running.ranks()
            running.process.kill()
            eventually(lambda: all(is_gone(rank) for rank in ranks))

    def kill_a_rank(self, running: Running) -> int:
        rank = running.ranks()[1]
        rank.kill()
        return int(rank.pid)

    def assert_dead(self, running: Running, rank: int) -> None:
        code, said = running.end()
        assert (code, said) == (
            1,
            f"error: rank 2 (process {rank}) was ended by SIGKILL; the server ends\n",
        )
