"""What goes wrong with the record must cost the record, never the server: a full disk, a folder
that is deleted, a port that is taken, and a folder that cannot be written, around a CPU vLLM.

    unshare -rm uv run python bench/record/harm.py --python VLLM_PYTHON

The disk is a tmpfs of 64 kB, so it needs a mount namespace, or root. All answers must be those of
a server that is not recorded.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.record import served
from bench.record.served import RECORD, Served, wait_until
from core.errors import GateLogError
from core.routing import folder as gate_folder

PROMPTS = tuple(f"{word} upon a time there was a {word}" for word in ("once", "twice", "never"))
ROUNDS = 60  # of all prompts: steps enough to fill the disk


@dataclass(frozen=True, slots=True)
class Harm:
    """`before` the server starts, and `during` its work; both get the folder of its logs."""

    name: str
    before: Callable[[Path], object] = lambda out: None
    during: Callable[[Path], object] = lambda out: None
    is_taken: bool = False  # the metrics' port


def small_disk(out: Path) -> None:
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(out)], check=True)


def read_only(out: Path) -> None:
    small_disk(out)
    subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)


HARMS = (
    Harm("nothing"),
    Harm("the disk is full", before=small_disk),
    Harm("the folder cannot be written", before=read_only),
    Harm("the folder is deleted", during=shutil.rmtree),
    Harm("the log file is deleted", during=lambda out: _log(out).unlink()),
    Harm("the metrics' port is taken", is_taken=True),
)


def _log(out: Path) -> Path:
    return out / "gate_logs" / "dp0_pp0.gatelog"


def answers(server: Served) -> list[str]:
    return [server.answer(prompt) for _ in range(ROUNDS) for prompt in PROMPTS]


@dataclass(frozen=True, slots=True)
class Found:
    """`said`: our own lines; `up`: the metric; `steps`: that the log holds."""

    answers: list[str]
    said: list[str]
    up: str
    steps: int
    code: int


def recorded(harm: Harm, python: str, model: Path, place: Path) -> Found:
    port, metrics, out = served.free_port(), served.free_port(), place / "logs"
    holder = socket.create_server(("127.0.0.1", metrics)) if harm.is_taken else None
    harm.before(out)
    words = [*RECORD, "--out", str(out), "--metrics-port", str(metrics), "--"]
    command = [*words, *served.vllm(python, model, port)]
    with served.serving(command, port, place / "output") as server:
        server.wait_ready()
        first = answers(server)
        harm.during(out)
        second = answers(server)
        up = "no answer" if harm.is_taken else _up(metrics)
        code = server.end()
    if holder:
        holder.close()
    lines = [line for line in server.printed().splitlines() if "gatescope" in line]
    return Found([*first, *second], lines, up, _steps(out), code)


def _up(port: int) -> str:
    """gatescope_recorder_up, once it is 0 or has had 10 s for it."""
    found = ""

    def is_down() -> bool:
        nonlocal found
        try:
            said = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        except httpx.HTTPError:
            found = "no answer"
            return True
        found = next(line for line in said.splitlines() if line.startswith("gatescope_recorder_up"))
        return found.endswith(" 0.0")

    wait_until(is_down, 10)
    return found.removeprefix("gatescope_recorder_up ")


def _steps(out: Path) -> int:
    try:
        return len(gate_folder.read(out / "gate_logs").tokens)
    except (GateLogError, OSError):
        return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True)
    parser.add_argument("--first", type=int, default=1, help="begin with the harm of this number")
    parser.add_argument("--last", type=int, default=len(HARMS))
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model = served.checkpoint(place)
        port = served.free_port()
        plain = served.vllm(options.python, model, port)
        with served.serving(plain, port, place / "output") as server:
            server.wait_ready()
            want = [*answers(server), *answers(server)]
            code = server.end()
        print("| harm | right answers | exit code | recorder_up | steps in the log | said |")
        print("|---|---|---|---|---|---|")
        chosen = list(enumerate(HARMS, 1))[options.first - 1 : options.last]
        for number, harm in chosen:
            own = place / str(number)
            own.mkdir()
            found = recorded(harm, options.python, model, own)
            right = sum(a == b for a, b in zip(found.answers, want, strict=True))
            wrong += right < len(want) or found.code != code
            said = "<br>".join(line.replace(str(own), "") for line in found.said) or "nothing"
            print(
                f"| {harm.name} | {right} of {len(want)} | {found.code} ({code} without) |"
                f" {found.up} | {found.steps} | {said} |",
                flush=True,
            )
            if subprocess.run(["mountpoint", "-q", str(own / "logs")]).returncode == 0:
                subprocess.run(["umount", str(own / "logs")], check=True)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
