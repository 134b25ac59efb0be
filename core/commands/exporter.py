"""The metrics of `gatescope record --metrics-port`: a process beside the command, which follows its
log and answers Prometheus.

    python -m core.commands.exporter FOLDER SOCKET_FD PID_FD EXPERTS

SOCKET_FD listens, PID_FD is the command's pidfd: when the command ends, this ends. The gauges are
of the last minute; without a step in it, they are absent.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from core.routing.windows import MINUTE_S, PHASES, Watched

if TYPE_CHECKING:
    from core.routing.layers import LayerLoad

EVERY_S = 2.0

LAYER = {
    "gatescope_rank_max_mean": ("Most loaded rank's load over the mean of all.", "rank"),
    "gatescope_active_experts": ("Experts that got a token in a step.", "active"),
    "gatescope_excess_cv": (
        "CV of expert load above what a fair router shows by chance.",
        "excess",
    ),
    "gatescope_busiest_rank_work": ("Busiest rank's work over a fair router's.", "work"),
}
SHARES = {
    "gatescope_rank_load_share": ("A rank's part of a layer's load.", "rank", "rank_shares"),
    "gatescope_expert_load_share": ("An expert's part of a layer's load.", "expert", "shares"),
}


class Metrics:
    """What a scrape collects; prometheus-client's Collector. A scrape never waits for the log to
    be read: it gets what `look` last saw."""

    def __init__(self, *, experts: bool) -> None:
        self._shares = list(SHARES) if experts else list(SHARES)[:1]
        self._loads: dict[str, tuple[LayerLoad, ...]] = {}
        self._seen = dict.fromkeys(PHASES, (0, 0, 0.0))
        self._is_well = False

    def look(self, watched: Watched) -> None:
        """Read what is new, and keep what a scrape may ask for."""
        watched.read()
        now_s, windows = time.time(), watched.windows
        self._loads = {phase: windows.last(phase, MINUTE_S, now_s).layers() for phase in PHASES}
        self._seen, self._is_well = dict(windows.seen), not watched.problem

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        loads, seen = self._loads, self._seen
        up = GaugeMetricFamily("gatescope_recorder_up", "1 while the recorder has no problem.")
        up.add_metric([], float(self._is_well))
        yield up
        for place, name in enumerate(("steps", "tokens", "step_seconds")):
            counter = CounterMetricFamily(
                f"gatescope_{name}", "Of recorded engine steps.", labels=["phase"]
            )
            for phase in PHASES:
                counter.add_metric([phase], seen[phase][place])
            yield counter
        yield from _of_layers(loads, GaugeMetricFamily)
        yield from _shares(loads, self._shares, GaugeMetricFamily)


def _of_layers(loads: dict[str, tuple[LayerLoad, ...]], gauge: Any) -> Iterator[Any]:
    for name, (text, field) in LAYER.items():
        family = gauge(name, f"{text} Last minute.", labels=["phase", "layer"])
        for phase, found in loads.items():
            for layer in found:
                if (value := getattr(layer, field)) is not None:
                    family.add_metric([phase, str(layer.layer)], value)
        yield family


def _shares(
    loads: dict[str, tuple[LayerLoad, ...]], names: Sequence[str], gauge: Any
) -> Iterator[Any]:
    for name in names:
        text, what, field = SHARES[name]
        family = gauge(name, f"{text} Last minute.", labels=["phase", "layer", what])
        for phase, found in loads.items():
            for layer in found:
                for place, share in enumerate(getattr(layer, field)):
                    family.add_metric([phase, str(layer.layer), str(place)], share)
        yield family


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads our output."""


def serve(metrics: Metrics, listening: socket.socket) -> _Server:
    """Answer on a socket that listens already, in a thread."""
    from prometheus_client import CollectorRegistry, make_wsgi_app

    registry = CollectorRegistry()
    registry.register(metrics)
    host, port = listening.getsockname()[:2]
    server = _Server((host, port), _Quiet, bind_and_activate=False)
    server.socket.close()
    server.socket, server.server_name, server.server_port = listening, host, port
    server.setup_environ()
    server.set_app(make_wsgi_app(registry))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main(argv: Sequence[str]) -> int:
    folder, listening, command = Path(argv[0]), socket.socket(fileno=int(argv[1])), int(argv[2])
    watched, metrics = Watched(folder), Metrics(experts=argv[3] == "True")
    serve(metrics, listening)
    while not select.select([command], [], [], EVERY_S)[0]:
        metrics.look(watched)
    return 0


if __name__ == "__main__":
    os.nice(10)  # the server comes first
    raise SystemExit(main(sys.argv[1:]))
