"""A vLLM plugin for tests only: it adds what vLLM's CPU build lacks for data and expert
parallelism, so that those layouts run on a CPU.

The CPU build's communicator has no all_gatherv and no reduce_scatterv, and its MoE kernel ignores
the expert map. vLLM loads this plugin from a folder that only tests put on PYTHONPATH.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """vLLM's entry point for plugins, called in every process."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    CpuCommunicator.all_gatherv = _all_gatherv
    CpuCommunicator.reduce_scatterv = _reduce_scatterv
    if not hasattr(CPUUnquantizedExperts, "all_experts_apply"):
        CPUUnquantizedExperts.all_experts_apply = CPUUnquantizedExperts.apply
        CPUUnquantizedExperts.apply = _apply


def _all_gatherv(self: Any, input_: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
    import torch

    if isinstance(input_, list):
        return [_all_gatherv(self, one, dim, sizes) for one in input_]
    assert dim == 0
    sizes = sizes or [input_.shape[0]] * self.world_size
    padded = input_.new_zeros((max(sizes), *input_.shape[1:]))
    padded[: input_.shape[0]] = input_
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded, group=self.device_group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _reduce_scatterv(self: Any, input_: Any, dim: int = -1, sizes: list[int] | None = None) -> Any:
    import torch

    assert dim == 0
    sizes = sizes or [input_.shape[0] // self.world_size] * self.world_size
    total = input_.float().contiguous()
    torch.distributed.all_reduce(total, group=self.device_group)
    start = sum(sizes[: self.rank_in_group])
    return total[start : start + sizes[self.rank_in_group]].to(input_.dtype)


def _apply(
    self: Any, output: Any, hidden_states: Any, w1: Any, w2: Any, *rest: Any, **named: Any
) -> None:
    """Map global expert ids to local ones; a token's experts on other ranks get weight 0."""
    names = ("topk_weights", "topk_ids", "activation", "global_num_experts", "expert_map")
    given = dict(zip(names, rest, strict=False)) | named
    local = given["expert_map"]
    if local is not None:
        ids = local[given["topk_ids"].long()]
        given["topk_weights"] = given["topk_weights"].masked_fill(ids < 0, 0.0)
        given["topk_ids"] = ids.clamp(min=0).to(given["topk_ids"].dtype)
    first = {name: given.pop(name) for name in names}
    self.all_experts_apply(
        output, hidden_states, w1, w2, **first, **given, **_unnamed(rest[len(names) :])
    )


def _unnamed(rest: tuple[Any, ...]) -> dict[str, Any]:
    names = (
        "a1q_scale",
        "a2_scale",
        "workspace13",
        "workspace2",
        "expert_tokens_meta",
        "apply_router_weight_on_input",
    )
    return dict(zip(names, rest, strict=False))
