"""Lines C1 to C4: commands of the built-in engine's experiment."""

from __future__ import annotations

import json
from pathlib import Path

from bench.reliability.reports.case import Case, gatescope, wrong

CONFIG = """[experiment]
engine = "builtin"
num_prompts = 4
output_len = 8
warmup_requests = 1
[[backends]]
name = "baseline"
port = 0
tensor_parallel = {ranks}
extra_args = {extra}
"""


def experiment(place: Path, *, ranks: int = 1, extra: str = "[]") -> None:
    """Two datasets of four prompts, one backend, a free port."""
    (place / "datasets").mkdir()
    (place / "experiments.toml").write_text(CONFIG.format(ranks=ranks, extra=extra))
    for dataset in ("001", "002"):
        rows = [{"id": str(n), "text": f"words {dataset} {n}", "category": "x"} for n in range(4)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (place / "datasets" / f"{dataset}.jsonl").write_text(lines)


def options_before(place: Path) -> str:
    answer = gatescope(place, "--batch", "report", "none")
    facts = {"exit code 2": answer.code == 2, "named": "--batch does not apply" in answer.err}
    return wrong(facts, answer)


def config_before(place: Path) -> str:
    answer = gatescope(place, "--config", "nope.toml", "doctor")
    return wrong({"exit code": answer.code != 0, "named": "nope.toml" in answer.out}, answer)


def generate_keeps(place: Path) -> str:
    gatescope(place, "generate", "--count", "3")
    answer = gatescope(place, "generate", "--count", "2")
    facts = {
        "exit code 2": answer.code == 2,
        "says what it would remove": "this would remove 1 dataset" in answer.err,
        "three are there": len([*place.glob("datasets/*.jsonl")]) == 3,
    }
    return wrong(facts, answer)


def free_port(place: Path) -> str:
    """And the gate logs of its run directory are found."""
    experiment(place)
    answer = gatescope(place, "--batch", "--out", "run")
    if answer.code:
        return wrong({"exit code 0": False}, answer)
    found = gatescope(place, "imbalance", "run", "--json")
    names = ["baseline/gates_logs_001", "baseline/gates_logs_002"]
    return wrong({"gate logs are found": sorted(found.data or {}) == names}, found)


def one_error(place: Path) -> str:
    experiment(place, extra='["--nix"]')
    answer = gatescope(place, "--batch", "--out", "run")
    facts = {
        "exit code 1": answer.code == 1,
        "once": answer.err.count("exited with code 2") == 1,
    }
    return wrong(facts, answer)


CASES = [
    Case("C1", "option that does not apply", options_before),
    Case("C1", "--config before doctor", config_before),
    Case("C2", "generate keeps", generate_keeps),
    Case("C3", "port 0, and imbalance RUN_DIR", free_port),
    Case("C4", "one error of a failing server", one_error),
]
