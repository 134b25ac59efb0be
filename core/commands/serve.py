"""`gatescope serve`: one backend of the config in the foreground, started by the code that batch
runs use."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from core import terminal
from core.commands import arguments as arg
from core.errors import UsageError

if TYPE_CHECKING:
    from core.backends.launch import Launch
    from core.experiment.config import Config
    from core.experiment.tables import Backend, Model

KEPT_BYTES = 1 << 18  # of what the server wrote: the cause of its death is looked for in it
DRAIN_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="BACKEND", help="name of a [[backends]] table")
    arg.add_config(parser)
    arg.add_engine(parser)
    parser.add_argument("--model", metavar="ID", help="hub name or folder, instead of the config's")
    parser.add_argument(
        "--port",
        type=arg.port_or_free,
        metavar="P",
        help="port to listen on, instead of the config's; 0: a free one",
    )
    for name, noun in (
        ("batch-tokens", "max_num_batched_tokens"),
        ("max-seqs", "max_num_seqs"),
        ("max-model-len", "max_model_len"),
        (
            "ep-size",
            "number of ranks (data_parallel with expert parallelism, else tensor_parallel)",
        ),
    ):
        parser.add_argument(
            f"--{name}", type=arg.at_least(1), metavar="N", help=f"{noun}, instead of the config's"
        )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal or the server's end; the exit code. GatescopeError before anything is
    started."""
    import asyncio

    from msgspec.structs import replace

    from core.backends import choice, ports
    from core.experiment import config

    loaded = config.load(arguments.config)
    backend, model = _backend(arguments, loaded), _model(arguments, loaded)
    config.check_budget(f"serve {backend.name}", backend)
    engine = config.engine(arguments.engine) if arguments.engine else loaded.experiment.engine
    kind = choice.decide(engine, [backend])
    if backend.port == 0:
        backend = replace(backend, port=ports.free())
        print(f"~ {backend.name}: port {backend.port}", file=sys.stderr)
    ports.check(backend.name, backend.port)
    choice.check_model(kind, model)
    launch = choice.launcher(kind, [backend]).launch(backend, model, None, loaded.experiment.seed)
    return asyncio.run(_serve(backend, launch, _api_key()))


def _backend(arguments: argparse.Namespace, loaded: Config) -> Backend:
    """The named backend, with what the options change. UsageError if there is none of that name."""
    from msgspec.structs import replace

    backend = next((b for b in loaded.backends if b.name == arguments.name), None)
    if backend is None:
        known = ", ".join(b.name for b in loaded.backends)
        raise UsageError(f"{arguments.config}: no backend {arguments.name!r}; known: {known}")
    size = "data_parallel" if backend.expert_parallel else "tensor_parallel"
    given = {
        "port": arguments.port,
        "max_num_batched_tokens": arguments.batch_tokens,
        "max_num_seqs": arguments.max_seqs,
        size: arguments.ep_size,
    }
    return replace(backend, **{key: value for key, value in given.items() if value is not None})


def _model(arguments: argparse.Namespace, loaded: Config) -> Model:
    from msgspec.structs import replace

    from core.experiment import config

    name = config.model_id(Path.cwd(), arguments.model) if arguments.model else None
    given = {"max_model_len": arguments.max_model_len, "id": name}
    return replace(loaded.model, **{key: value for key, value in given.items() if value})


def _api_key() -> str:
    """The user's key, else a new one. A new key is shown only on a terminal, never written to a
    file, which others may read.

    UsageError if there is neither a key nor a terminal. An empty VLLM_API_KEY means no key.
    """
    key = os.environ.get("VLLM_API_KEY")
    if key is None:
        if not sys.stderr.isatty():
            raise UsageError(
                "serve: VLLM_API_KEY is not set, and there is no terminal to show a new key; set it"
            )
        import secrets

        key = secrets.token_hex(16)
        print(f"~ key of this server: export VLLM_API_KEY={key}", file=sys.stderr)
    elif not key:
        print(
            "! VLLM_API_KEY is empty: everyone on this machine can use the server", file=sys.stderr
        )
    return key


async def _serve(backend: Backend, launch: Launch, api_key: str) -> int:
    import asyncio

    from core.backends import server as servers

    read_end, write_end = os.pipe()
    log = Path(f"/dev/fd/{write_end}")
    server = servers.start(
        backend.name, launch.command, port=backend.port, api_key=api_key, log=log, env=launch.env
    )
    os.close(write_end)
    said = bytearray()
    passing_on = threading.Thread(target=_pass_on, args=(read_end, said), daemon=True)
    passing_on.start()
    caught: list[int] = []
    loop = asyncio.get_running_loop()
    for number in terminal.ending():
        loop.add_signal_handler(number, caught.append, number)
    try:
        while not caught and not server.has_ended:
            await asyncio.sleep(0.1)
    finally:
        for left in server.stop():
            print(f"! {left}", file=sys.stderr)
        passing_on.join(DRAIN_S)
    if caught:
        return 128 + caught[0]
    print(server.death(said.decode(errors="replace").splitlines()), file=sys.stderr)
    return 1


def _pass_on(pipe: int, said: bytearray) -> None:
    """Print what the server writes until it ends, and keep the last KEPT_BYTES of it in `said`. A
    closed stdout does not stop the server."""
    while data := os.read(pipe, 1 << 16):
        with contextlib.suppress(OSError):
            os.write(1, data)
        said += data
        del said[: max(0, len(said) - KEPT_BYTES)]
    os.close(pipe)
