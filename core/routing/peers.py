"""Our expert loads, as files that other projects read (`foreign` reads theirs)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from core import files
from core.errors import GateLogError
from core.routing.folder import GateFolder
from core.stats.arrays import Ints


def write_sglang(logs: Path, out: Path) -> list[Path]:
    """SGLang's `--init-expert-location`: {"logical_count": [layers, experts]}, sums over all steps;
    a dense layer before or between the MoE layers has a row of zeros."""
    total: Ints | None = None
    for part in GateFolder(logs).blocks():
        sums = by_number(part.loads.sum(axis=0, dtype=np.int64), part.numbers)
        total = sums if total is None else total + sums
    if total is None:
        raise GateLogError(f"{logs}: holds no step")
    file = out / "logical_count.json"
    files.write_whole(file, files.formatted({"logical_count": total.tolist()}))
    return [file]


def by_number(rows: Ints, numbers: tuple[int, ...]) -> Ints:
    """[the model's layers, …]: `rows` at the layers' own numbers, zeros elsewhere."""
    whole = np.zeros((max(numbers) + 1, *rows.shape[1:]), np.int64)
    whole[list(numbers)] = rows
    return whole


def write_tensorrt(logs: Path, out: Path) -> list[Path]:
    """TensorRT-LLM's EXPERT_STATISTIC_PATH: the counts of every step, as of one rank."""
    from safetensors.numpy import save_file

    counts: dict[str, Ints] = {}
    top_k = experts = 0
    for part in GateFolder(logs).blocks():
        top_k, experts = int(part.top_k), part.loads.shape[2]
        for loads in part.loads:
            step = len(counts) // loads.shape[0]
            for number, row in zip(part.numbers, loads, strict=True):
                counts[f"{step}_{number}"] = row.astype(np.int64)
    if not counts:
        raise GateLogError(f"{logs}: holds no step")
    meta = {"num_experts": experts, "num_experts_per_token": top_k}
    out.mkdir(parents=True, exist_ok=True)
    made = [out / "meta_info.json", out / "rank0.safetensors"]
    made[0].write_text(json.dumps(meta) + "\n")
    save_file(counts, made[1])
    return made


# --- placements ---


def write_maps(
    slots: Ints, numbers: tuple[int, ...], experts: int, ranks: int, out: Path
) -> list[Path]:
    """A placement, `slots` [layers, physical experts]: the expert in each; slot s of S on rank
    s // (S / ranks). For SGLang's `--init-expert-location`, TensorRT-LLM's `moe_load_balancer`, and
    as plain JSON."""
    trivial = np.arange(slots.shape[1]) % experts  # of dense layers, which SGLang numbers too
    whole = np.tile(trivial, (max(numbers) + 1, 1))
    whole[list(numbers)] = slots
    plain = {
        "ranks": ranks,
        "experts": experts,
        "layers": list(numbers),
        "physical_to_logical": slots.tolist(),
        "rank_of_physical": np.repeat(np.arange(ranks), slots.shape[1] // ranks).tolist(),
    }
    rows = "".join(f"  {n}: {row}\n" for n, row in zip(numbers, slots.tolist(), strict=True))
    head = f"num_slots: {slots.shape[1]}\ninitial_global_assignments:\n"
    texts = {
        "sglang.json": files.formatted({"physical_to_logical_map": whole.tolist()}),
        "tensorrt-llm.yaml": f"{head}{rows}layer_updates_per_iter: 0\n".encode(),
        "placement.json": files.formatted(plain),
    }
    for name, data in texts.items():
        files.write_whole(out / name, data)
    return [out / name for name in texts]
