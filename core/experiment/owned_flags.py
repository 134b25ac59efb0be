"""Flags that gatescope itself gives every server: in extra_args a second value would win, and the
load, the report and the checks of what runs would go by the first.

--max-model-len is not among them: one backend may have room for less than [model] says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

OWNED = {
    "--host": "gatescope binds 127.0.0.1",
    "--uds": "gatescope asks over TCP",
    "--root-path": "gatescope asks at the root",
    "--port": "set port",
    "--model": "set id in [model]",
    "--served-model-name": "requests carry id of [model]",
    "--load-format": "set load_format in [model]",
    "--max-num-seqs": "set max_num_seqs",
    "--max-num-batched-tokens": "set max_num_batched_tokens",
    "--seed": "set seed in [experiment]",
    "--enforce-eager": "set enforce_eager",
    "--tensor-parallel-size": "set tensor_parallel",
    "-tp": "set tensor_parallel",
    "--data-parallel-size": "set data_parallel",
    "-dp": "set data_parallel",
    "--nnodes": "set nodes",
    "-n": "set nodes",
    "--node-rank": "set nodes",
    "-r": "set nodes",
    "--master-addr": "set interface",
    "--headless": "set nodes",
    "--data-parallel-address": "set interface",
    "--data-parallel-start-rank": "set nodes",
    "--enable-expert-parallel": "set expert_parallel",
    "-ep": "set expert_parallel",
    "--enable-eplb": "set eplb",
    "--all2all-backend": "set all2all_backend",
    "--moe-backend": "set moe_backend",
}
SHORTEST = 6  # characters of an abbreviation that is taken for its flag


def problems(extra_args: Sequence[str]) -> Iterator[str]:
    """A text for each flag of ours there, also where it is abbreviated or spelt with `_`."""
    given = {word.split("=")[0].replace("_", "-") for word in extra_args if word.startswith("-")}
    for flag, remedy in OWNED.items():
        if any(w == flag or (len(w) >= SHORTEST and flag.startswith(w)) for w in given):
            yield f"expected no {flag}; {remedy}"
