"""Is a recorded vLLM's end its own? Twelve ways to end a server, each without `gatescope record`
and with it: exit codes, processes that are left, and whether it ends at all within a minute.

    uv run python bench/record/exits.py --python VLLM_PYTHON

VLLM_PYTHON is the interpreter of a vLLM of the CPU build.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.record import served
from bench.record.served import RECORD, Served, wait_until

LOADS = "Initializing a V1 LLM engine"  # the engine's process is up, its model is not


@dataclass(frozen=True, slots=True)
class Case:
    """`end` waits for the moment, does what ends the server, and may be None: it ends by itself."""

    name: str
    end: Callable[[Served], object] | None = None
    flags: tuple[str, ...] = ()
    model: str = ""  # instead of one that exists
    is_taken: bool = False  # the port


def at_load(number: int) -> Callable[[Served], object]:
    def end(server: Served) -> None:
        wait_until(lambda: LOADS in server.printed(), served.START_S)
        server.process.send_signal(number)

    return end


def when_ready(*numbers: int) -> Callable[[Served], object]:
    def end(server: Served) -> None:
        server.wait_ready()
        for number in numbers:
            server.process.send_signal(number)

    return end


def while_it_answers(server: Served) -> None:
    server.wait_ready()

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError):
            server.answer("once upon a time", 900)

    threading.Thread(target=ask, daemon=True).start()
    time.sleep(1.0)  # 900 tokens take longer
    server.process.send_signal(signal.SIGTERM)


def engine_killed(server: Served) -> None:
    server.wait_ready()
    for child in psutil.Process(server.process.pid).children(recursive=True):
        if "EngineCore" in " ".join(child.cmdline()) or "EngineCore" in child.name():
            child.kill()
            return


CASES = (
    Case("--help", flags=("--help",)),
    Case("a flag that it does not know", flags=("--no-such-flag",)),
    Case("a model that is not there", model="/nowhere/model"),
    Case("its port is taken", is_taken=True),
    Case("SIGTERM while the model loads", at_load(signal.SIGTERM)),
    Case("SIGINT while the model loads", at_load(signal.SIGINT)),
    Case("SIGTERM", when_ready(signal.SIGTERM)),
    Case("SIGINT", when_ready(signal.SIGINT)),
    Case("SIGHUP", when_ready(signal.SIGHUP)),
    Case("SIGKILL", when_ready(signal.SIGKILL)),
    Case("SIGTERM while it answers", while_it_answers),
    Case("its engine is killed", engine_killed),
)


@dataclass(frozen=True, slots=True)
class End:
    """`code` as Popen has it; `left`: processes 20 s later; `lines`: printed by gatescope."""

    code: int | None
    left: int
    lines: int

    def shown(self) -> str:
        if self.code is None:
            return "still runs"
        code = f"exit {self.code}" if self.code >= 0 else signal.Signals(-self.code).name
        return code + (f", {self.left} processes left" if self.left else "")


def ended(case: Case, before: Sequence[str], python: str, model: Path, place: Path) -> End:
    port = served.free_port()
    own = served.vllm(python, Path(case.model) if case.model else model, port, *case.flags)
    holder = socket.create_server(("127.0.0.1", port)) if case.is_taken else None
    with served.serving([*before, *own], port, place / "output") as server:
        seen = set[psutil.Process]()

        def look() -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):
                seen.update(psutil.Process(server.process.pid).children(recursive=True))
            return server.process.poll() is not None

        ending = threading.Thread(target=case.end or (lambda _: None), args=(server,), daemon=True)
        ending.start()
        wait_until(lambda: look() or not ending.is_alive(), served.START_S)
        wait_until(look, served.END_S)  # one that still runs then has not taken the signal
        wait_until(lambda: not any(map(is_alive, seen)), 20)
        left = [one for one in seen if is_alive(one)]
        end = End(server.process.poll(), len(left), server.printed().count("gatescope:"))
        for one in left:
            one.kill()
    if holder:
        holder.close()
    return end


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True)
    parser.add_argument("--first", type=int, default=1, help="begin with the case of this number")
    options = parser.parse_args()
    differ = 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model = served.checkpoint(place)
        print("| what happens | without | with record | lines of gatescope |\n|---|---|---|---|")
        for number, case in enumerate(CASES, 1):
            if number < options.first:
                continue
            recorded = [*RECORD, "--out", str(place / f"logs{number}"), "--"]
            plain, ours = (
                ended(case, before, options.python, model, place) for before in ([], recorded)
            )
            differ += plain.shown() != ours.shown() or bool(ours.lines)
            print(f"| {case.name} | {plain.shown()} | {ours.shown()} | {ours.lines} |", flush=True)
    print(f"\n{differ} of {len(CASES) - options.first + 1} differ")
    return int(differ > 0)


if __name__ == "__main__":
    raise SystemExit(main())
