"""Commands to a running engine: one JSON line in, one JSON line out, over the run directory's
control.sock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from core.files import NOT_JSON
from core.terminal import printable, tell

SOCKET = "control.sock"
TIMEOUT_S = 10.0
MAX_LINE_BYTES = 1 << 20
DEAF = "its file system has no unix sockets"
DEAF_MEANS = "the runs go on, but take no commands from the terminal UI; ctrl-C stops them"


class Cancel(Struct, frozen=True, tag=True):
    """Take queued runs out of the queue; end the running one, and keep what it has."""

    runs: list[str]


class Retry(Struct, frozen=True, tag=True):
    """Queue failed or cancelled runs again."""

    runs: list[str]


class Move(Struct, frozen=True, tag=True):
    """Put queued runs before another queued run; "" is the end."""

    runs: list[str]
    before: str


class Add(Struct, frozen=True, tag=True):
    """Queue one more run of each of these datasets at each of these backends; `beside`: next to the
    runs that wait for the same server, so that none is started once more."""

    datasets: list[str]
    backends: list[str]
    beside: bool = False


class StopServer(Struct, frozen=True, tag=True):
    """Cancel what a backend runs and has queued, and end its server."""

    backend: str


class Stop(Struct, frozen=True, tag=True):
    """End everything: the run is interrupted, servers end, the engine exits."""


Command = Cancel | Retry | Move | Add | StopServer | Stop


class Reply(Struct, frozen=True):
    """`error` is empty if the command was obeyed."""

    error: str = ""


class ControlError(Exception):
    """A command was not obeyed; the text says why, in one line."""


Obey = Callable[[Command], None]
"""Does what a command asks, or raises ControlError."""
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_commands: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_replies = msgspec.json.Decoder(Reply)


def send(run_dir: Path, command: Command) -> None:
    """Give one command to the engine of `run_dir`. ControlError where there is none, or it
    refuses."""
    try:
        with _short(run_dir) as path, socket.socket(socket.AF_UNIX) as line:
            line.settimeout(TIMEOUT_S)
            line.connect(path)
            line.sendall(msgspec.json.encode(command) + b"\n")
            answer = line.makefile("rb").readline(MAX_LINE_BYTES)
        reply = _replies.decode(answer)
    except (FileNotFoundError, ConnectionRefusedError):
        raise ControlError(
            f"no engine is running in {run_dir}; resume with:"
            f" gatescope --resume {shlex.quote(str(run_dir))}"
        ) from None
    except (OSError, *NOT_JSON) as error:
        raise ControlError(f"the engine of {run_dir} did not answer: {error}") from None
    if reply.error:
        raise ControlError(reply.error)


def is_live(run_dir: Path) -> bool:
    """Whether an engine listens there."""
    try:
        with _short(run_dir) as path, socket.socket(socket.AF_UNIX) as line:
            line.settimeout(TIMEOUT_S)
            line.connect(path)
    except OSError:
        return False
    return True


@contextlib.asynccontextmanager
async def listening(run_dir: Path, obey: Obey) -> AsyncIterator[None]:
    """Obey commands while the body runs. Where there can be no socket, stderr says so and the body
    runs without."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                writer.write(msgspec.json.encode(_reply(line, obey)) + b"\n")
                await writer.drain()
        writer.close()

    with _short(run_dir) as path:
        server = await _bound(path, answer, run_dir)
        try:
            yield
        finally:
            if server is not None:
                server.close()
                Path(path).unlink(missing_ok=True)


async def _bound(path: str, answer: Answer, run_dir: Path) -> asyncio.Server | None:
    """The listening socket; None, and a line on stderr, where the file system has no such sockets:
    the runs are worth more than commands to them."""
    mask = os.umask(0o177)
    try:
        # One that a killed engine left behind: the directory's lock is ours.
        Path(path).unlink(missing_ok=True)
        return await asyncio.start_unix_server(answer, path, limit=MAX_LINE_BYTES)
    except OSError as error:
        tell(printable(f"! {run_dir}: {DEAF} ({error.strerror}): {DEAF_MEANS}"))
        return None
    finally:
        os.umask(mask)


def _reply(line: bytes, obey: Obey) -> Reply:
    try:
        obey(_commands.decode(line))
    except NOT_JSON as error:
        return Reply(f"not a command: {error}")
    except ControlError as error:
        return Reply(str(error))
    return Reply()


@contextlib.contextmanager
def _short(run_dir: Path) -> Iterator[str]:
    """A path to the socket that fits a socket's address, 107 bytes: a longer one goes through /proc
    (Linux)."""
    plain = str(run_dir / SOCKET)
    if len(os.fsencode(plain)) < 100:
        yield plain
        return
    folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET}"
    finally:
        os.close(folder)
