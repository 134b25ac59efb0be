"""`gatescope record`: any command that starts vLLM, with the recorder in it.

This process becomes the command (exec), so its output, its exit code and its signals are its own,
and nothing stands between it and who started it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from core.commands import arguments as arg
from core.errors import UsageError
from core.terminal import complain

OUT = Path("runs/record")
KEEP_BYTES = 10 * 10**9
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as shells say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=OUT,
        metavar="DIR",
        help="folder of this server's logs; each start of it has its own folder there"
        " (default: runs/record)",
    )
    parser.add_argument(
        "--rotate",
        type=arg.rotation,
        default=(0, 0.0),
        metavar="10m|1GB",
        help="begin another file after this time, or at this size",
    )
    parser.add_argument(
        "--keep",
        type=arg.size,
        default=KEEP_BYTES,
        metavar="10GB",
        help="most that the logs take on disk; the oldest are removed (default: 10GB)",
    )
    parser.add_argument(
        "--sample",
        type=arg.one_in,
        default=1,
        metavar="1/10",
        help="record one engine step in so many (default: all)",
    )
    parser.add_argument(
        "--metrics-port",
        type=arg.port,
        metavar="P",
        help="answer Prometheus on this port: loads of ranks and layers, last minute"
        " (needs prometheus-client)",
    )
    parser.add_argument(
        "--metrics-host",
        default="127.0.0.1",
        metavar="H",
        help="address to listen on for that (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--metrics-experts",
        action="store_true",
        help="the load of every expert too: layers × experts more series",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="-- COMMAND",
        help="the command and its arguments, such as: vllm serve MODEL",
    )


def run(arguments: argparse.Namespace) -> int:
    """Become the command; an exit code only where it cannot be run."""
    from core.backends import recording

    if not arguments.words:
        raise UsageError("record: no command; put it behind --, as in: record -- vllm serve MODEL")
    environment = _own_environment()
    try:
        environment |= _recorded(arguments, environment)
        reason = recording.doubt(arguments.words)
    except OSError as error:
        reason = f"{error.filename or arguments.out}: cannot be written: {error.strerror}"
    if reason:
        complain(f"not recorded: {' '.join(reason.split())}")
    if arguments.metrics_port and (missing := _start_metrics(arguments, environment)):
        complain(f"no metrics: {missing}")
    return _become(arguments.words, environment)


def _own_environment() -> dict[str, str]:
    """As it was given to us: in the C locale, Python adds LC_CTYPE to it."""
    environment = dict(os.environ)
    try:
        given = Path("/proc/self/environ").read_bytes()
    except OSError:
        return environment
    if b"LC_CTYPE=" not in given:
        environment.pop("LC_CTYPE", None)
    return environment


def _recorded(arguments: argparse.Namespace, environment: dict[str, str]) -> dict[str, str]:
    """What is added to the environment. OSError if the folder cannot be made."""
    from core.backends import vllm
    from core.recorder.gatescope_recorder.limits import VARIABLE, Limits

    out: Path = arguments.out.absolute()
    left = arguments.keep - _make_room(out, arguments.keep // 2)
    part_bytes, part_s = arguments.rotate
    limits = Limits(part_bytes, part_s, left, arguments.sample)
    folder = _next_folder(out)
    return {**vllm.recording(folder, environment), VARIABLE: limits.encode()}


def _make_room(out: Path, most: int) -> int:
    """Remove the oldest files of earlier starts until they take `most` bytes; what they take."""
    from core.routing import folder

    starts = folder.starts(out)
    files = [file for start in starts for file in start.iterdir() if file.is_file()]
    files.sort(key=lambda file: file.stat().st_mtime)
    taken = sum(file.stat().st_size for file in files)
    for file in files:
        if taken <= most:
            break
        taken -= file.stat().st_size
        file.unlink()
    for start in starts:
        if not any(start.iterdir()):
            start.rmdir()
    return taken


def _next_folder(out: Path) -> Path:
    """A new folder for this start's logs, named as a run directory's."""
    from core.routing import folder

    number = max(map(folder.start_of, folder.starts(out)), default=0)
    while True:
        number += 1
        place = out / ("gate_logs" if number == 1 else f"gate_logs-start{number}")
        with contextlib.suppress(FileExistsError):  # another start was quicker
            place.mkdir(parents=True)
            return place


def _start_metrics(arguments: argparse.Namespace, environment: dict[str, str]) -> str:
    """Start the process beside the command that answers Prometheus; why there is none, else
    empty."""
    from core.backends import vllm

    folder = environment.get(vllm.GATE_LOGS)
    if folder is None:
        return "nothing is recorded"
    if importlib.util.find_spec("prometheus_client") is None:
        return "prometheus-client is missing; pip install 'gatescope[metrics]'"
    host, port = arguments.metrics_host, arguments.metrics_port
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as listening:
            command = os.pidfd_open(os.getpid())
            words = [folder, str(listening.fileno()), str(command), str(arguments.metrics_experts)]
            _detach(words, (listening.fileno(), command))
            os.close(command)
    except OSError as error:
        number = error.errno or 0  # of an unknown host, negative
        return f"{host}:{port}: {os.strerror(number) if number > 0 else error.strerror}"
    return ""


def _detach(words: list[str], files: Sequence[int]) -> None:
    """Run the exporter as nobody's child, so that the command finds none that it did not start."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    try:
        subprocess.Popen(
            [sys.executable, "-m", "core.commands.exporter", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=files,
            start_new_session=True,
        )
    finally:
        os._exit(0)


def _become(words: list[str], environment: dict[str, str]) -> int:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and exec would keep so
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(words[0], words, environment)
    except FileNotFoundError:
        complain(f"{words[0]}: not found")
        return NOT_FOUND
    except OSError as error:
        complain(f"{words[0]}: cannot be run: {error.strerror}")
        return NOT_EXECUTABLE
