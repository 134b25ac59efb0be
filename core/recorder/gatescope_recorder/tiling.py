"""Learns which tiles this server's MoE kernel computes, from vLLM itself.

vLLM's Triton kernels ask `try_get_optimal_moe_config` for their blocks at every launch (0.11 to
0.33; under CUDA graphs, at every capture). From the loading of the weights to the end of the
warm-up this module stands in for that function and keeps what the kernel asked with. After it, the
function itself is asked the same for a step of every size. A kernel that never asks (FlashInfer
CUTLASS, DeepGEMM, a CPU's) publishes no tiling.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from .about import kernel_name
from .kernel import Blocks, Kernel, tilings
from .routers import Layer, holders, method_name

MODULE = "vllm.model_executor.layers.fused_moe.fused_moe"
NAME = "try_get_optimal_moe_config"

log = logging.getLogger("vllm.gatescope_recorder")


class Asked:
    """Stands in for vLLM's function from `begin` on, until `end`. `last`: what it was asked last,
    by name."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self._own: Any = None
        self._instead: Any = None

    def begin(self) -> None:
        module = sys.modules.get(MODULE)
        own = getattr(module, NAME, None)
        if own is None:
            return
        names = inspect.signature(own)

        @functools.wraps(own)
        def instead(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                self.last = dict(names.bind(*args, **kwargs).arguments)
            return own(*args, **kwargs)

        self._own, self._instead = own, instead
        _replace(own, instead)

    def end(self) -> None:
        if self._instead is not None:
            _replace(self._instead, self._own)


def _replace(old: Any, new: Any) -> None:
    """In every module of vLLM that has imported it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm.") and vars(module).get(NAME) is old:
            setattr(module, NAME, new)


def kernel(layers: Sequence[Layer], config: Any, device: torch.device, asked: Asked) -> Kernel:
    """The kernel of these layers, after the warm-up. If its tiling cannot be learned, without
    one."""
    plain = _shape(layers, config, device)
    try:
        return _tiled(plain, config, asked.last) if asked.last else plain
    except Exception:  # a version whose function differs: the loads are recorded all the same
        log.exception("gatescope recorder: the MoE kernel's tiling could not be learned")
        return plain


def _shape(layers: Sequence[Layer], config: Any, device: torch.device) -> Kernel:
    first, ranks = layers[0], config.parallel_config.data_parallel_size

    def known(name: str) -> Any:
        found = (getattr(holder, name, None) for holder in holders(first.module))
        return next((value for value in found if value is not None), None)

    is_gated = getattr(known("moe_config"), "is_act_and_mul", True)
    inner = int(known("intermediate_size_per_partition") or 0)
    weights = known("w13_weight")
    dtype = known("params_dtype") if weights is None else weights.dtype
    return Kernel(
        name=kernel_name(layers) or method_name(first.module),
        dtype=str(dtype or "").removeprefix("torch."),
        sms=_sms(device),
        experts=int(first.router.global_num_experts),
        local_experts=int(known("local_num_experts") or 0),
        top_k=first.top_k,
        columns=(inner * 2 if is_gated else inner, int(known("hidden_size") or 0)),
        graphs=tuple(ranks * size for size in graphs(config)),
    )


def _sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _tiled(plain: Kernel, config: Any, asked: dict[str, Any]) -> Kernel:
    module = sys.modules[MODULE]

    @functools.cache
    def blocks(rows: int) -> Blocks:
        chosen = getattr(module, NAME)(**{**asked, "M": rows})
        return int(chosen["BLOCK_SIZE_M"]), int(chosen.get("BLOCK_SIZE_N", 0))

    rows_of, most = rows(config)
    table = _table(module, lambda: blocks(1))
    return replace(
        plain,
        local_experts=int(asked["w1_shape"][0]),
        columns=(int(asked["w1_shape"][1]), int(asked["w2_shape"][1])),
        tilings=tilings(lambda tokens: blocks(rows_of(tokens)), most),
        source="tuned" if table else "default",
        table=table,
    )


def rows(config: Any) -> tuple[Callable[[int], int], int]:
    """Rows of the kernel's input in a step of so many tokens of all data-parallel ranks; and the
    tokens of the largest step.

    CUDA graphs pad a rank's tokens to the next captured size. Data-parallel ranks' rows are
    gathered, and are taken to be shared evenly, since ranks are padded alike.
    """
    sizes, ranks = graphs(config), config.parallel_config.data_parallel_size

    def of(tokens: int) -> int:
        own = -(-tokens // ranks)
        return int(ranks * next((size for size in sizes if size >= own), own))

    return of, ranks * int(config.scheduler_config.max_num_batched_tokens)


def graphs(config: Any) -> list[int]:
    """Rows of the CUDA graphs that one rank's steps are padded to, ascending."""
    compilation = config.compilation_config
    mode = getattr(getattr(compilation, "cudagraph_mode", None), "name", "")
    sizes = getattr(compilation, "cudagraph_capture_sizes", None) or []
    return [] if mode == "NONE" else sorted(int(size) for size in sizes)


def _table(module: Any, ask: Callable[[], Any]) -> str:
    """The file of tuned settings that vLLM looks up when it is asked; empty if it has none."""
    own, found = module.get_moe_configs, []

    @functools.wraps(own)
    def noted(*args: Any, **kwargs: Any) -> Any:
        table = own(*args, **kwargs)
        if table:
            found.append(inspect.signature(own).bind(*args, **kwargs).arguments)
        return table

    module.get_moe_configs = noted
    try:
        ask()
    finally:
        module.get_moe_configs = own
    if not found:
        return ""
    block = [found[0].get("block_n"), found[0].get("block_k")]
    names = [found[0][name] for name in ("E", "N", "dtype")]
    return str(module.get_config_file_name(*names, block if all(block) else None))
