"""Forces what the routers of one vLLM worker choose, by the dose (target imbalance) of the requests
in a step, or by the recorded run that they replay.

Each router's `_compute_routing` is wrapped: its weights stay, and its ids are replaced in the rows
of a forced step. The ids for a step stand in static tensors that are filled before the step, on the
same stream: a CUDA graph replays the reads, and a step that is still running has already read
them. Rows that pad a forced step to a captured graph choose as the step's own rows do, so they wake
no expert that the log does not show. Every row of a natural step keeps the ids that vLLM chose, bit
for bit.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import place, routers, tiling
from .about import About
from .dose import Course, Cut
from .order import Order, dose_of
from .place import Place, RefusedError
from .replay import Ids, phase_of
from .requests import Requests, segment_of

BUFFERS = 4  # of replayed ids on their way to the device: more than steps that vLLM launches ahead
HOOKS = ("set_capture_fn", "_compute_routing")  # of the versions whose routers have the latter

log = logging.getLogger("vllm.gatescope_recorder")


@functools.lru_cache(maxsize=1 << 16)
def dose_of_request(request: str) -> str:
    """The dose or replay that a request asks for; empty for natural routing."""
    return dose_of(segment_of(request))


class Arrivals:
    """Brings replayed ids to the device from pinned memory: the host waits only for a copy of
    `BUFFERS` steps before."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        layers, tokens, top_k = shape
        size, self._cuda, self._turn = layers * tokens * top_k, device.type == "cuda", 0
        self._landed = torch.zeros(size, dtype=torch.int32, device=device)
        self._sent = [
            (
                torch.zeros(size, dtype=torch.int32, pin_memory=self._cuda),
                torch.cuda.Event() if self._cuda else None,
            )
            for _ in range(BUFFERS)
        ]

    def bring(self, ids: Ids) -> torch.Tensor:
        """`ids` [layers, tokens, top_k] on the device, until the next call."""
        buffer, arrived = self._sent[self._turn]
        self._turn = (self._turn + 1) % BUFFERS
        if arrived:
            arrived.synchronize()
        buffer[: ids.size].view(ids.shape).copy_(torch.from_numpy(ids))
        self._landed[: ids.size].copy_(buffer[: ids.size], non_blocking=True)
        if arrived:
            arrived.record()
        return self._landed[: ids.size].view(ids.shape)


class Tables:
    """`ids` [layers, rows, top_k] that a forced step routes to, and `forced` [rows, 1]: the rows
    that it forces. `graphs`, ascending: rows that a step may be padded to."""

    def __init__(
        self,
        course: Course,
        shape: tuple[int, int, int],
        device: torch.device,
        graphs: Sequence[int] = (),
    ) -> None:
        self.course, self._graphs = course, graphs
        self.error = ""
        layers, tokens, top_k = shape
        rows = tokens + 1  # more than any pass has, as in `Capture`
        self.ids = torch.arange(top_k, dtype=torch.int32, device=device).repeat(layers, rows, 1)
        self.forced = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self._rows = torch.arange(rows, device=device).unsqueeze(1)
        self._pools = {
            label: torch.from_numpy(rows).to(device) for label, rows in course.pools.items()
        }
        self._arrivals = Arrivals(shape, device) if course.tracks else None
        self._count = 0

    def fill(self, doses: set[str], tokens: int, run: str = "", phase: str = "decode") -> None:
        """Prepare a step of `tokens` tokens; `run` and `phase` as in `Course.next`."""
        found = self.course.next(doses, tokens, run=run, phase=phase)
        if isinstance(found, Cut):
            self._fill_from_pool(found, tokens)
        elif found is not None and self._arrivals:
            self.ids[:, :tokens].copy_(self._arrivals.bring(found))
        count = 0 if found is None else self._pad(tokens)
        if count != self._count:
            torch.lt(self._rows, count, out=self.forced)
            self._count = count

    def _pad(self, tokens: int) -> int:
        """Repeat the step's rows up to the graph that it is padded to; the rows there are then."""
        end, filled = next((size for size in self._graphs if size >= tokens), tokens), tokens
        while filled < end:
            more = min(filled, end - filled)
            self.ids[:, filled : filled + more].copy_(self.ids[:, :more])
            filled += more
        return end

    def _fill_from_pool(self, cut: Cut, tokens: int) -> None:
        layers, _, top_k = self.ids.shape
        source = self._pools[cut.dose].as_strided(
            (layers, tokens, top_k), (self.course.stagger * top_k, top_k, 1), cut.start * top_k
        )
        ids = self.ids[:, :tokens]
        ids.copy_(source)
        if cut.shift:
            ids.add_(cut.shift).remainder_(self.course.experts)

    def wrap(self, layer: int, route: Callable[..., Any]) -> Callable[..., Any]:
        """`route` with its ids replaced; both return (weights, ids, …). Traceable, like a tap."""
        mine, forced = self.ids[layer], self.forced

        def replaced(ids: torch.Tensor) -> torch.Tensor:
            n = ids.shape[0]
            return torch.where(forced[:n], mine[:n].to(ids.dtype), ids)

        def routed(*args: Any, **kwargs: Any) -> Any:
            weights, ids, *rest = route(*args, **kwargs)
            if torch.compiler.is_compiling():
                return weights, replaced(ids), *rest
            try:
                return weights, replaced(ids), *rest
            except Exception as error:  # first raised in the warm-up: `Forcing.start` then refuses
                self.error = self.error or f"layer {layer}: {type(error).__name__}: {error}"
                return weights, ids, *rest

        return routed


class Forcing:
    """Forced routing of one worker. After a refusal nothing is forced, and the log and
    the worker's own record say so."""

    def __init__(self, worker: Any, config: Any, here: Place, order: Order, about: About) -> None:
        self.worker, self.config, self.here, self.order = worker, config, here, order
        self.about = about
        self.tables: Tables | None = None
        self._requests = Requests() if order.replays else None
        self._warned = False

    def bind(self) -> None:
        """Wrap the routers, after the weights are loaded and before the recorder taps them: what it
        records is what was forced."""
        try:
            self.tables = self._tables()
        except (RefusedError, ValueError) as error:
            self._refuse(str(error))
        except Exception as error:
            log.exception("gatescope forced routing: it could not attach to the routers")
            self._refuse(f"{type(error).__name__}: {error}")

    def _tables(self) -> Tables:
        place.check(self.config)
        if self.order.replays and self.here.pp_size > 1:
            raise RefusedError("pipeline stages replay no recorded routing; use 1 stage")
        layers = routers.find(self.worker.get_model(), place.redundant_experts(self.config))
        first, rows = layers[0], place.max_rows(self.config)
        if any(layer.hook not in HOOKS for layer in layers):
            raise RefusedError(
                "the routers of this vLLM have no _compute_routing; use 0.15 or newer"
            )
        course = Course(
            self.order,
            first.experts,
            first.top_k,
            len(layers),
            rows,
            self.here.dp,
            self.here.dp_size,
        )
        graphs = tiling.graphs(self.config)
        if self.here.dp_size > 1:  # padded as the rank with most tokens, which others do not know
            graphs = graphs[-1:]
        shape = (len(layers), rows, first.top_k)
        tables = Tables(course, shape, self.worker.device, graphs)
        for number, layer in enumerate(layers):
            layer.router._compute_routing = tables.wrap(number, layer.router._compute_routing)
        place.mark_compilation(self.config, self.worker.device, "gatescope_forced_routing")
        return tables

    def start(self) -> None:
        """After the warm-up, log that routing can be forced from here on, or why not."""
        if self.tables is None:
            return
        if self.tables.error:
            self._refuse(self.tables.error)
            return
        self.tables.course.restart()
        labels = ", ".join((*self.order.labels, *self.order.replays))
        forced = f"on for {labels}; {self.order.ranks} ranks, seed {self.order.seed}"
        log.info("gatescope forced routing: %s", forced)
        self.about.note(forced_routing=forced)

    def step(self, scheduled: Any) -> None:
        """Before a forward pass. What this raises ends the server: no token may silently be routed
        at another level."""
        tokens = scheduled.total_num_scheduled_tokens
        batch = self._requests.read(scheduled) if self._requests else None
        if self.tables is None or not tokens:
            return
        doses = {dose_of_request(request) for request in scheduled.num_scheduled_tokens}
        if len(doses) > 1 and not self._warned:
            self._warned = True
            log.error(
                "gatescope forced routing: a step mixes doses and is routed naturally: %s",
                sorted(doses),
            )
        if batch:  # some may replay a run: a step without other runs' tokens names it
            phase = phase_of(batch.prefill_tokens)
            self.tables.fill(doses, tokens, min(batch.segments), phase)
        else:
            self.tables.fill(doses, tokens)

    def dummy(self) -> None:
        """Before a dummy batch: it counts as a step, because other ranks may have tokens in it."""
        if self.tables is not None:
            self.tables.course.next((), 0)

    def _refuse(self, reason: str) -> None:
        self.tables = None
        log.error("gatescope forced routing: refused: %s", reason)
        self.about.note(forced_routing=f"refused: {reason}")
