"""The built-in engine's command line. Imports no NumPy: its number of threads is not set yet."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """The server's options; the names are vLLM's."""

    host: str
    port: int
    served_model_name: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    tensor_parallel_size: int
    data_parallel_size: int
    enable_expert_parallel: bool
    weights: str  # "trained" or "random"
    seed: int
    gate_log: Path | None
    pace: str = ""

    @property
    def ranks(self) -> int:
        """Processes that share the experts."""
        return self.tensor_parallel_size * self.data_parallel_size


def parse(arguments: Sequence[str]) -> Options:
    """The options in a command line. SystemExit 2 if they are not valid."""
    parser = argparse.ArgumentParser(
        prog="python -m core.builtin.server",
        description="A tiny Mixtral-shaped model in NumPy behind vLLM's HTTP API.",
        epilog="Environment variables: VLLM_API_KEY, the key that clients must send;"
        " GATESCOPE_FORCED_ROUTING, the doses that a request's label may ask for.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--served-model-name", default="builtin")
    add(
        "--max-model-len",
        type=int,
        default=4096,
        metavar="N",
        help="maximum tokens of prompt and answer together",
    )
    add(
        "--max-num-seqs",
        type=int,
        default=32,
        metavar="N",
        help="maximum sequences that run at once",
    )
    add(
        "--max-num-batched-tokens",
        type=int,
        default=8192,
        metavar="N",
        help="maximum tokens per step",
    )
    add(
        "--tensor-parallel-size",
        type=int,
        default=1,
        metavar="R",
        help="split every expert over R ranks",
    )
    add(
        "--data-parallel-size",
        type=int,
        default=1,
        metavar="R",
        help="needs --enable-expert-parallel",
    )
    add("--enable-expert-parallel", action="store_true", help="spread whole experts over the ranks")
    add(
        "--weights",
        choices=("trained", "random"),
        default="trained",
        help="the trained checkpoint, or random weights of its sizes (default: trained)",
    )
    add("--seed", type=int, default=0, help="of random weights")
    add(
        "--gate-log",
        type=Path,
        metavar="PATH",
        help="write what the router did at every step; must not exist",
    )
    add(
        "--pace",
        default="",
        metavar="US,US,US",
        help="make a step last so many µs, and so many for each request, and for each active"
        " expert of the busiest rank, in every layer: a cost known by construction",
    )
    options = Options(**vars(parser.parse_args(arguments)))
    if problem := _problem(options):
        parser.error(problem)
    return options


def _problem(options: Options) -> str | None:
    sizes = ("max_model_len", "max_num_seqs", "tensor_parallel_size", "data_parallel_size")
    if not 0 <= options.port < 1 << 16:
        return "--port must be 0 (any free one) to 65535"
    for name in sizes:
        if getattr(options, name) < 1:
            return f"--{name.replace('_', '-')} must be at least 1"
    if options.max_num_batched_tokens < options.max_num_seqs:
        return (
            "--max-num-batched-tokens must be at least --max-num-seqs:"
            " every running sequence takes a token per step"
        )
    if options.data_parallel_size > 1 and not options.enable_expert_parallel:
        return (
            "--data-parallel-size needs --enable-expert-parallel:"
            " whole copies of the model are not supported"
        )
    if options.pace and not options.gate_log:
        return "--pace needs --gate-log: it goes by what is logged"
    if options.gate_log and options.gate_log.exists():
        return f"--gate-log {options.gate_log} exists; name a new file"
    return None
