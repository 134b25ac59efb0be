"""Rules about servers: what ran is what was asked for, computed every token once, and was the same
at every start."""

from __future__ import annotations

from collections import defaultdict

from core.recorder.gatescope_recorder.kernel import Kernel
from core.validity.evidence import Evidence
from core.validity.problem import Problem, problems


def as_requested(seen: Evidence) -> list[Problem] | None:
    """Every server ran what was requested."""
    differences: dict[str, list[str]] = defaultdict(list)
    for ready in seen.journal.ready:
        known = differences[ready.backend]
        known += [m for m in ready.mismatches if m not in known]
    remedy = (
        "results are named for what was requested: rename the backend,"
        " or fix its settings (strict = true stops such a run)"
    )
    return problems("invalid", differences, "; ".join, remedy)


def idle_nodes(seen: Evidence) -> list[Problem] | None:
    """Every node that was allocated to a server ran a rank of it."""
    idle = {r.backend: r.ran.get("idle_nodes", "") for r in seen.journal.ready if "nodes" in r.ran}

    def wrong(nodes: str) -> str:
        return nodes and f"no rank of it ran on {nodes}, which was allocated to it"

    remedy = "its figures are of fewer nodes than asked for, and idle ones are paid: see server.log"
    return problems("invalid", idle, wrong, remedy)


def missing_logs(seen: Evidence) -> list[Problem] | None:
    """Every rank of a server that spans nodes has a log."""
    ready = seen.journal.ready
    missing = {r.backend: r.ran.get("missing_logs", "") for r in ready if "nodes" in r.ran}

    def wrong(ranks: str) -> str:
        return ranks and f"there is no gate log of {ranks}"

    remedy = "all nodes must see the run directory: see server.log and server.log.node1, …"
    return problems("invalid", missing, wrong, remedy)


def one_version(seen: Evidence) -> list[Problem] | None:
    """The same engine and version at every start of every server."""
    versions: dict[str, list[str]] = defaultdict(list)
    for ready in seen.journal.ready:
        said = f"{ready.ran.get('engine', '?')} {ready.ran.get('version', '?')}"
        if said not in versions[ready.backend]:
            versions[ready.backend].append(said)
    usual = next(iter(versions.values()), [])[:1]

    def wrong(said: list[str]) -> str:
        if said == usual:
            return ""
        return f"it ran {' and then '.join(said)}; the first server was {usual[0]}"

    return problems(
        "doubtful",
        versions,
        wrong,
        "compare backends of one version, unless the version is the question",
    )


def tuned_kernels(seen: Evidence) -> list[Problem] | None:
    """Every backend's MoE kernel runs the blocks of a tuned table, or every one vLLM's default
    rule: else the backends differ by their tables too."""
    known = {name: k for name, k in seen.kernels.items() if k.source in ("tuned", "default")}
    tuned = next((f"{name}'s {k.table}" for name, k in known.items() if k.source == "tuned"), "")

    def wrong(kernel: Kernel) -> str:
        if kernel.source == "tuned" or not tuned:
            return ""
        what = f"{kernel.local_experts} experts with GEMMs of {kernel.columns[0]} columns"
        return (
            f"its {kernel.name} kernel runs vLLM's default blocks: no table is tuned for {what};"
            f" against {tuned}, the comparison is partly of tables"
        )

    remedy = (
        "tune this shape (vLLM's benchmark_moe.py, VLLM_TUNED_CONFIG_FOLDER),"
        " or name it beside the comparison"
    )
    return problems("doubtful", known if len(known) > 1 else {}, wrong, remedy)


def prefix_caching(seen: Evidence) -> list[Problem] | None:
    """Off, and no prompt token came from a cache: what is cached is not computed, so routing and
    TTFT miss it."""
    on = {
        r.backend: "its log says that it is on" if r.ran.get("prefix_caching") == "True" else ""
        for r in seen.journal.ready
    }
    for sample in seen.journal.samples:
        if sample.server and (hits := sample.server.prefix_cache_hits):
            on[sample.backend] = f"{hits} prompt tokens came from the cache"
    return problems(
        "invalid",
        on,
        str,
        "take --enable-prefix-caching out of extra_args; repeated prompts vanish with it",
    )


def preemptions(seen: Evidence) -> list[Problem] | None:
    """No request lost its place in the KV cache: it would be computed a second time."""
    most: dict[str, int] = {}
    for sample in seen.journal.samples:
        if sample.server:
            most[sample.backend] = max(most.get(sample.backend, 0), sample.server.preemptions)
    remedy = "lower max_concurrency or max_num_seqs, or give the server more memory"
    return problems(
        "doubtful",
        most,
        lambda n: f"{n} requests were preempted and computed again" if n else "",
        remedy,
    )
