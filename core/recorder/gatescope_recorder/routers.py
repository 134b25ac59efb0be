"""Finds the routers of a model and taps what they choose. How differs between vLLM's versions:

- 0.20 and newer: `BaseRouter.set_capture_fn`, which has one slot. vLLM's own capturer uses the same
  slot, so taps are chained.
- 0.15: `_compute_routing` of each router object is wrapped.
- 0.11: `select_experts` of each layer object is wrapped.

All three give logical expert ids. Nothing here may raise inside a forward pass.

Versions 0.11.2 and 0.15.1 were checked without serving a model. In their sources: the worker
wrapper loads general plugins before `init_device`; the five wrapped worker methods, the fields of
the scheduler's output, the parallel settings in `place`, the forward context's `dp_metadata`, and
the launcher's flags and log lines are as expected. On a CPU, without their kernels: these taps ran
on their real `FusedMoE` and routers. Both versions gather the tokens of all data-parallel ranks
before they route, unless an all2all kernel gathers them; `Capture.foreign_rows` then refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .place import RefusedError

Tap = Callable[[torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Layer:
    """One MoE layer: its module, the object that routes for it, and the hook that is tapped."""

    name: str
    module: Any
    router: Any
    hook: str
    top_k: int
    experts: int  # logical


def find(model: Any, redundant: int = 0) -> list[Layer]:
    """The MoE layers in model order. `redundant`: physical experts that EPLB added. RefusedError if
    there is none, one cannot be tapped, or they differ in shape."""
    layers = list(_layers(model, redundant))
    if not layers:
        raise RefusedError(
            "no router was found in this model: it has no MoE layers, or this vLLM exposes none"
        )
    shapes = {(layer.top_k, layer.experts) for layer in layers}
    if len(shapes) > 1:
        raise RefusedError(f"MoE layers of different shapes (top-k, experts): {sorted(shapes)}")
    for layer in layers:
        if _is_monolithic(layer.module):
            raise RefusedError(
                f"{layer.name}: its MoE kernel ({method_name(layer.module)}) routes inside and does"
                " not expose the choice; use a modular one, such as --moe-backend triton"
            )
    return layers


def _layers(model: Any, redundant: int) -> Iterator[Layer]:
    seen: set[int] = set()
    for name, module in model.named_modules():
        router: Any = getattr(module, "router", None)
        if (
            router is None
            and hasattr(module, "select_experts")
            and hasattr(module, "global_num_experts")
        ):
            router = module  # 0.11: the layer routes for itself
        hook = _hook(router)
        if not hook or id(router) in seen:
            continue
        seen.add(id(router))
        experts = (
            getattr(module, "logical_num_experts", None)
            or int(router.global_num_experts) - redundant
        )
        yield Layer(name, module, router, hook, int(router.top_k), int(experts))


def _hook(router: Any) -> str:
    """The name of the hook; empty for anything that is not a router."""
    if not (hasattr(router, "top_k") and hasattr(router, "global_num_experts")):
        return ""
    if hasattr(router, "set_capture_fn") and hasattr(router, "capture_fn"):
        return "set_capture_fn"
    if hasattr(router, "_compute_routing"):
        return "_compute_routing"
    return "select_experts" if hasattr(router, "select_experts") else ""


def _is_monolithic(module: Any) -> bool:
    return any(bool(getattr(method, "is_monolithic", False)) for method in methods(module))


def method_name(module: Any) -> str:
    return next((type(method).__name__ for method in methods(module)), "unknown")


def holders(module: Any) -> Iterator[Any]:
    """Where this version of vLLM keeps a layer's weights, sizes and method: the layer's
    `routed_experts`, or the layer."""
    if (inner := getattr(module, "routed_experts", None)) is not None:
        yield inner
    yield module


def methods(module: Any) -> Iterator[Any]:
    """The objects that run a layer's experts, wherever this version of vLLM keeps them."""
    for holder in holders(module):
        for name in ("quant_method", "_quant_method"):
            if (method := getattr(holder, name, None)) is not None:
                yield method
                if (inner := getattr(method, "old_quant_method", None)) is not None:
                    yield inner  # a modular kernel was put around it


def tap(layer: Layer, capture: Tap) -> None:
    """Call `capture` with the ids [tokens, top_k] of every forward pass of the layer."""
    if layer.hook == "set_capture_fn":
        layer.router.set_capture_fn(_chained(layer.router.capture_fn, capture))
    elif layer.hook == "_compute_routing":
        layer.router._compute_routing = _after(layer.router._compute_routing, capture)
    else:
        _check_select_experts(layer)
        layer.router.select_experts = _after(layer.router.select_experts, capture)


def retap(layer: Layer, capture: Tap) -> None:
    """Tap again if vLLM's own capturer has taken the slot since."""
    if layer.hook == "set_capture_fn" and capture not in _chain(layer.router.capture_fn):
        tap(layer, capture)


def _check_select_experts(layer: Layer) -> None:
    """In 0.11 most quantized layers call a function of the class, which does not know the layer."""
    method = method_name(layer.module)
    if "Unquantized" not in method and "Modular" not in method:
        raise RefusedError(
            f"{layer.name}: in this vLLM, {method} does not say which layer it routes for;"
            " use 0.15 or newer"
        )
    if getattr(layer.module, "enable_eplb", False):
        raise RefusedError(
            "EPLB in this vLLM hides logical expert ids; use 0.15 or newer, or turn EPLB off"
        )


def _chained(before: Tap | None, capture: Tap) -> Tap:
    if before is None:
        return capture

    def both(ids: torch.Tensor) -> None:
        before(ids)
        capture(ids)

    both.chain = (*_chain(before), capture)  # type: ignore[attr-defined]  # a mark on a function
    return both


def _chain(tap: Tap | None) -> tuple[Tap, ...]:
    return getattr(tap, "chain", (tap,) if tap is not None else ())


def _after(route: Callable[..., Any], capture: Tap) -> Callable[..., Any]:
    """`route` returns (weights, ids, …); `capture` sees the ids."""

    def routed(*args: Any, **kwargs: Any) -> Any:
        result = route(*args, **kwargs)
        capture(result[1])
        return result

    return routed
