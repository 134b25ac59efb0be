"""Builds model, ranks, engine and API server, and runs them until a signal arrives."""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
import sys
from dataclasses import asdict
from types import FrameType

import uvicorn

from core.builtin import checkpoint, spared
from core.builtin.app import App, Service
from core.builtin.engine import Engine
from core.builtin.forcing import Forcing
from core.builtin.kv_cache import KVCache
from core.builtin.model import Model
from core.builtin.options import Options
from core.builtin.pace import Pace
from core.builtin.parallel import Layout, Ranks, Split
from core.builtin.protocol import Json
from core.builtin.scheduler import Scheduler
from core.builtin.spared import SparedWriter
from core.builtin.weights import Shape, Weights
from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header
from core.recorder.gatescope_recorder.order import Order

ENGINE = "builtin (NumPy, CPU)"
VERSION = "0.1.0"

SWITCH_INTERVAL_S = 1e-4
"""With Python's 5 ms the API server could hold up a whole step."""


def serve(options: Options, api_key: str, forced_routing: str = "") -> int:
    """Run the server; its exit code. `forced_routing`: an encoded Order of the doses that requests
    may ask for."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        engine, ranks = _build(options, Order.decode(forced_routing) if forced_routing else None)
    except MemoryError as error:
        print(f"error: {error}; lower --max-num-seqs or --max-model-len", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    version = _version(options, engine.model.shape, ranks.layout, engine.forcing)
    print(", ".join(f"{key} {value}" for key, value in version.items()), flush=True)
    service = Service(options.served_model_name, options.max_model_len, api_key, version)
    server = Server(options, service, engine)
    with contextlib.closing(ranks):
        ranks.watch(engine.fail)
        gc.collect()
        gc.freeze()  # these objects live as long as the process: collections can skip them
        server.run()
    return server.exit_code


def _build(options: Options, order: Order | None) -> tuple[Engine, Ranks]:
    """Engine and ranks. ValueError, OSError or MemoryError if the options are not possible."""
    shape = Shape()
    layout = Layout(Split.EXPERT if options.enable_expert_parallel else Split.TENSOR, options.ranks)
    layout.check(shape)
    weights = (
        checkpoint.read(checkpoint.FOLDER, shape)
        if options.weights == "trained"
        else Weights.seeded(shape, options.seed)
    )
    forcing = Forcing(order, shape, options.max_num_batched_tokens) if order else None
    cache = KVCache(shape, options.max_num_seqs, options.max_model_len)
    # Forked before there are threads, files or sockets: the ranks would inherit them.
    ranks = Ranks(shape, weights, layout, options.max_num_batched_tokens)
    scheduler = Scheduler(options.max_num_seqs, options.max_num_batched_tokens)
    log, pace = (
        _open_log(options, shape, layout),
        Pace.parse(options.pace) if options.pace else None,
    )
    return Engine(Model(shape, weights, cache, ranks), scheduler, log, forcing, pace), ranks


def _open_log(options: Options, shape: Shape, layout: Layout) -> GateLogWriter | None:
    recorded = None if options.gate_log else spared.asked()
    if not options.gate_log and not recorded:
        return None
    header = Header(
        engine="builtin",
        model=options.served_model_name,
        layers=shape.layers,
        experts=shape.experts,
        top_k=shape.top_k,
        count_bytes=2 if options.max_num_batched_tokens < 1 << 16 else 4,
        ranks=layout.ranks if layout.split is Split.EXPERT else 1,
        placement=layout.placement(shape.experts),
        kernel=layout.kernel(shape),
        sample=recorded[1].sample if recorded else 1,
    )
    if options.gate_log:
        return GateLogWriter(options.gate_log, header)
    assert recorded
    try:
        return SparedWriter(recorded[0], header, recorded[1])
    except OSError as error:
        print(f"gatescope recorder: disabled: {error}", file=sys.stderr, flush=True)
        return None


def _version(options: Options, shape: Shape, layout: Layout, forcing: Forcing | None) -> Json:
    """What actually runs."""
    labels = (*forcing.order.labels, *forcing.order.replays) if forcing else ()
    forced = {"forced_routing": f"on for {', '.join(labels)}"} if labels else {}
    return {
        "version": VERSION,
        "engine": ENGINE,
        "parallel": str(layout.split),
        "ranks": layout.ranks,
        "tensor_parallel_size": options.tensor_parallel_size,
        "data_parallel_size": options.data_parallel_size,
        "enable_expert_parallel": options.enable_expert_parallel,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "weights": options.weights,
        "seed": options.seed,
        "shape": asdict(shape),
        **forced,
    }


class Server(uvicorn.Server):
    """uvicorn's server, but on a signal it ends the open streams instead of waiting for them."""

    def __init__(self, options: Options, service: Service, engine: Engine) -> None:
        app = App(service, engine, on_death=self._give_up)
        config = uvicorn.Config(
            app.starlette(),
            host=options.host,
            port=options.port,
            http="httptools",
            loop="uvloop",
            lifespan="on",
            log_level="warning",
            access_log=False,
            # In s; uvicorn's 5 would drop a client's connections between two runs.
            timeout_keep_alive=60,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self.engine = engine
        self.exit_code = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and print the address."""
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]  # not the option, which may be 0
        print(f"ready: http://{self.config.host}:{port}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End normally on a signal. uvicorn would raise it again, without our cleanup."""
        print(f"{signal.Signals(sig).name}: stopping", flush=True)
        self.engine.stop()
        self.should_exit = True

    def _give_up(self) -> None:
        self.exit_code = 1
        self.should_exit = True
