"""Which part of the model this worker holds, and which layouts cannot be recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class RefusedError(Exception):
    """Recording or forcing would be wrong here, so it is not done. The text says why and what to
    do."""


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's data-parallel rank, pipeline stage and tensor-parallel rank. Tensor-parallel ranks
    route alike, so rank 0 writes for all."""

    dp: int
    dp_size: int
    pp: int
    pp_size: int
    tp: int
    tp_size: int

    @property
    def name(self) -> str:
        return f"dp{self.dp}_pp{self.pp}"

    @classmethod
    def here(cls, config: Any) -> Place:
        """The place of this process, once vLLM has set up its process groups."""
        from vllm.distributed.parallel_state import get_pp_group, get_tp_group

        parallel, tp, pp = config.parallel_config, get_tp_group(), get_pp_group()
        return cls(
            dp=int(getattr(parallel, "data_parallel_rank", 0)),
            dp_size=int(getattr(parallel, "data_parallel_size", 1)),
            pp=pp.rank_in_group,
            pp_size=pp.world_size,
            tp=tp.rank_in_group,
            tp_size=tp.world_size,
        )


def check(config: Any) -> None:
    """RefusedError for layouts in which a router does not see exactly the step's own tokens, in
    order."""
    parallel = config.parallel_config
    if getattr(config, "speculative_config", None) is not None:
        raise RefusedError(
            "speculative decoding: rejected draft tokens would be counted too; turn it off"
        )
    if getattr(parallel, "use_ubatching", False) or getattr(parallel, "enable_dbo", False):
        raise RefusedError("dual batch overlap (--enable-dbo) splits a step's rows; turn it off")
    if getattr(parallel, "use_sequence_parallel_moe", False):
        raise RefusedError(
            "tensor parallel with data parallel and expert parallel: each rank routes a shard of"
            " the tokens only; use --tensor-parallel-size 1"
        )
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        raise RefusedError("prefill context parallel splits a step's rows over ranks; turn it off")


def expert_ranks(config: Any) -> int:
    """Ranks that the experts are spread over; 1 without expert parallelism."""
    parallel = config.parallel_config
    if not getattr(parallel, "enable_expert_parallel", False):
        return 1
    return int(parallel.tensor_parallel_size) * int(getattr(parallel, "data_parallel_size", 1))


def has_eplb(config: Any) -> bool:
    return bool(getattr(config.parallel_config, "enable_eplb", False))


def placement(config: Any, experts: int) -> tuple[int, ...]:
    """The expert-parallel rank of each expert, as vLLM places them; empty without expert
    parallelism, or if EPLB or MoonEP (0.33) moves them."""
    ranks = expert_ranks(config)
    moves = getattr(config.parallel_config, "all2all_backend", "") == "moonep"
    if ranks == 1 or moves or has_eplb(config):
        return ()
    strategy = getattr(config.parallel_config, "expert_placement_strategy", "linear")
    if strategy == "round_robin":
        return tuple(e % ranks for e in range(experts))
    share, more = divmod(experts, ranks)
    sizes = [share + 1 if rank < more else share for rank in range(ranks)]
    return tuple(rank for rank, size in enumerate(sizes) for _ in range(size))


def redundant_experts(config: Any) -> int:
    """Physical experts that EPLB added."""
    eplb = getattr(config.parallel_config, "eplb_config", None)
    added = getattr(eplb, "num_redundant_experts", 0)
    return int(added or 0) if has_eplb(config) else 0


def max_rows(config: Any) -> int:
    """Rows of the largest forward pass: a step's tokens, or a captured graph's."""
    sizes = getattr(config.compilation_config, "cudagraph_capture_sizes", None) or [0]
    return max(int(config.scheduler_config.max_num_batched_tokens), *(int(size) for size in sizes))


def mark_compilation(config: Any, device: Any, name: str) -> None:
    """Give the compiled graph a cache key of its own on a CPU: there our wrapper is traced into it,
    so an engine without the wrapper must not share it. On a GPU the MoE op is opaque and the cache
    can be shared."""
    extra = getattr(config, "additional_config", None)
    if device.type == "cpu" and isinstance(extra, dict):
        extra[name] = True


def vocabulary(config: Any) -> int:
    """Tokens that the model knows; 0 where this version does not say."""
    text = getattr(config.model_config, "hf_text_config", None)
    return int(getattr(text, "vocab_size", 0) or 0)
