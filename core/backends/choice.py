"""Which engine serves: vLLM where it is wanted and available, else the built-in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from core.backends import builtin, forcing, modelfiles, nvml, vllm
from core.backends.launch import Launcher
from core.builtin.weights import Shape
from core.errors import BackendError, ConfigError
from core.experiment.config import Config
from core.experiment.dose import Dose, Replay
from core.experiment.tables import Backend, Model
from core.recorder.gatescope_recorder import replay
from core.recorder.gatescope_recorder.order import DoseError

Kind = Literal["vllm", "builtin"]


def decide(wanted: Literal["auto", "vllm", "builtin"], backends: Sequence[Backend]) -> Kind:
    """`auto` is vllm where there are GPUs enough for the largest backend and every backend's
    interpreter has vLLM."""
    if wanted != "auto":
        return wanted
    enough = all(len(nvml.seen(backend.env)) >= backend.ranks_here for backend in backends)
    return "vllm" if enough and _vllm_everywhere(backends) else "builtin"


def launcher(kind: Kind, backends: Sequence[Backend] = ()) -> Launcher:
    """The module that knows how to serve. BackendError where one of `backends` cannot be served by
    it."""
    if kind == "builtin":
        if wide := [backend.name for backend in backends if backend.nodes > 1]:
            raise BackendError(
                f"[[backends]] {wide[0]}, nodes: the built-in engine runs on one; set nodes = 1,"
                ' or engine = "vllm"'
            )
        return builtin
    for backend in backends:
        vllm.check(backend)
    return vllm


def check_model(kind: Kind, model: Model) -> None:
    """ConfigError where vLLM would be given a path at which no model is."""
    if kind == "vllm":
        modelfiles.check(model.id)


def check_doses(
    kind: Kind, backends: Sequence[Backend], config: Config, imposed: Sequence[Dose | Replay]
) -> None:
    """ConfigError where one of these backends could not force one of these doses, or any replay. If
    the model's sizes are unknown until it is loaded, its server reports that instead."""
    if not imposed:
        return
    if kind == "builtin":
        shape: tuple[int, int] | None = (Shape().experts, Shape().top_k)
    else:
        for backend in backends:
            vllm.check_forcing(backend)
        shape = vllm.moe_shape(config.model.id)
    try:
        order = forcing.order(config, imposed)
        if order and shape:
            forcing.check(order, *shape)
    except DoseError as error:
        raise ConfigError(
            f"{config.path}: [dose]: {error}; take other levels or patterns"
        ) from None


def check_recording(kind: Kind, config: Config, *, layers: int, experts: int, top_k: int) -> None:
    """ConfigError where recorded loads of this shape do not fit the model. What is unknown until it
    is loaded, its server checks."""
    if kind == "builtin":
        own = Shape()
        model: tuple[int, int, int] | None = own.layers, own.experts, own.top_k
    else:
        found = vllm.moe_shape(config.model.id)
        model = (modelfiles.layers(config.model.id) or layers, *found) if found else None
    if model is None:
        return
    try:
        replay.check(layers, experts, top_k, *model)
    except DoseError as error:
        raise ConfigError(f"{config.path}: replay: {error}; take logs of such a model") from None


def label(kind: Kind, backends: Sequence[Backend], model: Model) -> str:
    """The engine as it is shown on every screen and in every file. BackendError as `launcher`."""
    if kind == "builtin":
        return builtin.label(model)
    return vllm.label(model, [vllm.check(backend).version for backend in backends])


def _vllm_everywhere(backends: Sequence[Backend]) -> bool:
    try:
        return all(vllm.find(backend.python) for backend in backends)
    except BackendError:
        return False
