"""Puts a recorder around one vLLM worker, by wrapping methods of that object."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import node, place, routers, tiling
from .about import About, running
from .capture import Capture
from .eplb import MapLog
from .forcing import Forcing
from .gatelog import Header
from .limits import Limits
from .order import Order
from .parts import LOG, MAPS
from .place import Place, RefusedError
from .recorder import Recorder, write_refusal

log = logging.getLogger("vllm.gatescope_recorder")


class Attachment:
    """The recorder's part in a worker's life. After a refusal or a failure it does nothing."""

    def __init__(
        self, worker: Any, config: Any, folder: Path, here: Place, about: About, limits: Limits
    ) -> None:
        self.worker, self.config, self.here, self.about = worker, config, here, about
        self.limits = limits
        self.path = folder / f"{here.name}.gatelog"
        self.layers: list[routers.Layer] = []
        self.taps: list[routers.Tap] = []
        self.capture: Capture | None = None
        self.recorder: Recorder | None = None
        self.asked = tiling.Asked()

    def bind(self) -> None:
        """Find the routers, make the buffer, tap: after the weights are loaded, and before any
        compilation or graph capture."""
        place.check(self.config)
        self.layers = routers.find(self.worker.get_model(), place.redundant_experts(self.config))
        first, rows = self.layers[0], place.max_rows(self.config)
        capture = Capture(len(self.layers), rows, first.top_k, first.experts, self.worker.device)
        self.taps = [capture.tap(n) for n in range(len(self.layers))]
        for layer, tap in zip(self.layers, self.taps, strict=True):
            routers.tap(layer, tap)
        place.mark_compilation(self.config, self.worker.device, "gatescope_recorder")
        self.capture = capture
        self.asked.begin()

    def rebind(self) -> None:
        """Before graphs are captured, tap again: vLLM's own capturer may have taken the slots."""
        for layer, tap in zip(self.layers, self.taps, strict=True):
            routers.retap(layer, tap)

    def start(self) -> None:
        """After the warm-up, open the log and record."""
        self.asked.end()
        if self.capture is None:
            return
        if foreign := self.capture.foreign_rows(self.here.dp):
            raise RefusedError(f"tokens of several ranks are gathered before routing: {foreign}")
        if self.capture.error:
            raise RuntimeError(f"a tap failed during warm-up: {self.capture.error}")
        header = self._header()
        recorder = Recorder(self.path, header, self.capture, self.limits)
        if place.has_eplb(self.config) and self.here.dp == 0:
            maps = MapLog(self.layers)
            recorder.each_second = lambda index: maps.poll(index, _maps_beside(recorder.path))
        recorder.vocabulary = place.vocabulary(self.config)
        self.recorder = recorder
        self.recorder.failed = lambda reason: self.about.note(recorder=f"disabled: {reason}")
        self.recorder.start()
        records = (
            f"records {header.layers} layers x {header.experts} experts, top-{header.top_k},"
            f" dp {header.dp} of {header.dp_size}, pp {header.pp} of {header.pp_size},"
            f" hook {header.hook}"
        )
        log.info("gatescope recorder: %s", records)
        self.about.note(recorder=records, **running(self.config, self.layers, header.ranks))

    def _header(self) -> Header:
        import vllm

        first = self.layers[0]
        return Header(
            engine=f"vllm {vllm.__version__}",
            model=str(self.config.model_config.model),
            layers=len(self.layers),
            experts=first.experts,
            top_k=first.top_k,
            count_bytes=2 if place.max_rows(self.config) < 1 << 16 else 4,
            ranks=place.expert_ranks(self.config),
            placement=place.placement(self.config, first.experts),
            dp=self.here.dp,
            dp_size=self.here.dp_size,
            pp=self.here.pp,
            pp_size=self.here.pp_size,
            layer_names=tuple(layer.name for layer in self.layers),
            hook=first.hook,
            sample=self.limits.sample,
            **asdict(node.here()),
            kernel=tiling.kernel(self.layers, self.config, self.worker.device, self.asked),
        )

    def dummy(self) -> None:
        """After a dummy batch, which a data-parallel rank without requests runs beside the
        others."""
        if self.recorder is not None:
            self.guard(self.recorder.dummy)

    def close(self) -> None:
        if self.recorder is not None:
            self.guard(self.recorder.close)

    def guard(self, action: Callable[..., Any], *args: Any) -> Any:
        """Run one of our own actions; what it raises stops the recording, never the server."""
        try:
            return action(*args)
        except RefusedError as error:
            log.error("gatescope recorder: refused: %s", error)
            self._give_up(str(error), refused=True)
        except Exception as error:
            if self.recorder is not None:
                self.recorder.fail(error)
            else:
                log.exception("gatescope recorder: disabled: %s: %s", type(error).__name__, error)
                self._give_up(f"{type(error).__name__}: {error}", refused=False)
        return None

    def _give_up(self, reason: str, *, refused: bool) -> None:
        self.capture, self.layers, self.taps = None, [], []
        self.about.note(recorder=f"{'refused' if refused else 'disabled'}: {reason}")
        try:
            write_refusal(self.path, reason if refused else f"the recorder failed: {reason}")
        except OSError as error:
            log.error("gatescope recorder: %s cannot be written: %s", self.path, error)


def _maps_beside(log: Path) -> Path:
    return log.with_name(log.name.removesuffix(LOG) + MAPS)


def attach(worker: Any, config: Any, folder: Path, order: Order | None, limits: Limits) -> None:
    """Wrap the worker's methods: to record and, with an `order`, to force what is routed.

    All tensor-parallel ranks route alike, so only the first records; every rank must be forced.
    """
    here = Place.here(config)
    about = About(folder, f"{here.name}_tp{here.tp}")
    on = node.here()
    about.note(**({"node": on.host, "node_rank": str(on.node)} if on.host else {}))
    forcing = Forcing(worker, config, here, order, about) if order else None
    if forcing:
        # before the recorder's: it taps what was forced
        _wrap(worker, "load_model", after=forcing.bind)
        _wrap(worker, "compile_or_warm_up_model", after=forcing.start)
    if here.tp == 0:
        _record(worker, Attachment(worker, config, folder, here, about, limits))
    if forcing:
        _wrap(worker, "execute_dummy_batch", before=forcing.dummy)
        _wrap_step(worker, forcing)  # outside the recorder's: what it times is the step alone


def _record(worker: Any, attachment: Attachment) -> None:
    _wrap(worker, "load_model", after=lambda: attachment.guard(attachment.bind))
    _wrap(
        worker,
        "compile_or_warm_up_model",
        before=lambda: attachment.guard(attachment.rebind),
        after=lambda: attachment.guard(attachment.start),
    )
    _wrap(worker, "execute_dummy_batch", after=attachment.dummy)
    _wrap(worker, "shutdown", before=attachment.close)
    _wrap_execute_model(worker, attachment)


def _wrap(
    worker: Any,
    name: str,
    before: Callable[[], Any] = lambda: None,
    after: Callable[[], Any] = lambda: None,
) -> None:
    original = getattr(worker, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before()
        result = original(*args, **kwargs)
        after()
        return result

    setattr(worker, name, wrapped)


def _wrap_step(worker: Any, forcing: Forcing) -> None:
    original = worker.execute_model

    @functools.wraps(original)
    def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        forcing.step(scheduled)
        return original(scheduled, *args, **kwargs)

    worker.execute_model = execute_model


def _wrap_execute_model(worker: Any, attachment: Attachment) -> None:
    original = worker.execute_model

    @functools.wraps(original)
    def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = attachment.recorder
        if recorder is None or not recorder.is_on:
            return original(scheduled, *args, **kwargs)
        slot = attachment.guard(recorder.begin, scheduled)
        result = original(scheduled, *args, **kwargs)
        attachment.guard(recorder.end, scheduled, slot)
        return result

    worker.execute_model = execute_model
