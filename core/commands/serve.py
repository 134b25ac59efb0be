"""`gatescope serve`: one backend of experiments.toml in the foreground, started by the code that
batch runs use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import threading
from pathlib import Path

from msgspec.structs import replace

from core.backends import choice, ports
from core.backends import server as servers
from core.backends.launch import Launch
from core.errors import UsageError
from core.experiment import config
from core.experiment.config import Backend

KEPT_BYTES = 1 << 18  # of what a server wrote: why it died is looked for in it
DRAIN_S = 1.0


def run(
    *,
    config_path: Path,
    name: str,
    engine: str | None,
    model_id: str | None,
    port: int | None,
    batch_tokens: int | None,
    max_seqs: int | None,
    max_model_len: int | None,
    ranks: int | None,
) -> int:
    """Serve until a signal or the server's end; the exit code. UsageError before anything is
    started."""
    loaded = config.load(config_path)
    backend = next((b for b in loaded.backends if b.name == name), None)
    if backend is None:
        raise UsageError(
            f"{config_path}: no backend {name!r}; known: {', '.join(b.name for b in loaded.backends)}"
        )
    given = {"port": port, "max_num_batched_tokens": batch_tokens, "max_num_seqs": max_seqs}
    backend = replace(backend, **{k: v for k, v in given.items() if v is not None})
    if ranks is not None:
        size = "data_parallel" if backend.expert_parallel else "tensor_parallel"
        backend = replace(backend, **{size: ranks})
    config.check_budget(f"serve {name}", backend)
    changed = {"max_model_len": max_model_len, "id": model_id}
    model = replace(loaded.model, **{k: v for k, v in changed.items() if v})
    kind = choice.decide(config.engine(engine) if engine else loaded.experiment.engine, [backend])
    ports.check(backend.name, backend.port)
    launch = choice.launcher(kind, [backend]).launch(backend, model, None, loaded.experiment.seed)
    return asyncio.run(_serve(backend, launch, _api_key()))


def _api_key() -> str:
    """The user's key, else one made for this start, which only a terminal is shown: not a file,
    which others may read.

    UsageError where there is neither. An empty VLLM_API_KEY is taken at its word.
    """
    key = os.environ.get("VLLM_API_KEY")
    if key is None:
        if not sys.stderr.isatty():
            raise UsageError(
                "serve: no VLLM_API_KEY is set, and no terminal is there to show a new key; set one"
            )
        key = secrets.token_hex(16)
        print(f"~ the key of this server: export VLLM_API_KEY={key}", file=sys.stderr)
    elif not key:
        print(
            "! VLLM_API_KEY is empty: everybody on this machine can use the server", file=sys.stderr
        )
    return key


async def _serve(backend: Backend, launch: Launch, api_key: str) -> int:
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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
    """Show what the server writes until it has ended, and keep the last of it. A closed stdout does
    not stop it."""
    while data := os.read(pipe, 1 << 16):
        with contextlib.suppress(OSError):
            os.write(1, data)
        said += data
        del said[: max(0, len(said) - KEPT_BYTES)]
    os.close(pipe)
