"""Rules about gate logs: whether their steps can be those of the traffic, and whether all of it is
in them."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from core.routing.imbalance import Imbalance
from core.routing.run import LongestStep
from core.rundir.result import Result
from core.validity.evidence import Evidence
from core.validity.problem import Problem, Severity, problems

# A CV's interval draws blocks of n^(1/3) steps: fewer than 30 steps leave fewer than ten blocks
MIN_STEPS = 30
MIN_CONSTANT = 5  # steps: two or three steps of one repeated word may be alike by chance
MIN_CVS = 3  # datasets: two may be alike by chance, or be the same prompts
# relative: far below what chance leaves between two samples of traffic, however many steps they
# have
SAME_CV = 1e-6
TOKENS_LOST = 0.01  # share: losing more can be losing a kind of step, such as prefill

MIN_STRIDED = 4  # layers with a constant distance, to believe that no others have experts

MIN_RUNS = 5  # of a backend, to know how long its steps usually take
STALLED = 3.0  # × the usual: skew, clocks and a busy machine seldom do as much
STALL_MS = 250.0  # less is no more than a few steps

OWN_RECORDER = (
    "record again with one file a rank and without dummy batches, as gatescope's recorder does"
)


def one_token_steps(seen: Evidence) -> list[Problem] | None:
    """Steps of one token each, though prompts have more: what an idle data-parallel rank's dummy
    batches look like."""
    single = {run for run, r in seen.results.items() if (r.total_input_tokens or 0) <= r.completed}

    def wrong(log: Imbalance) -> str:
        cv = f" (here {log.per_step_cv:.3f})" if log.per_step_cv is not None else ""
        if log.tokens != log.steps:
            return ""
        return (
            f"each of its {log.steps} steps has a single token, so no prompt was computed in them:"
            " they are the dummy batches of an idle rank,"
            f" whose CV is √(E/k - 1) regardless of the traffic{cv}"
        )

    return problems(
        "invalid",
        {run: log for run, log in seen.routing.items() if run not in single},
        wrong,
        OWN_RECORDER,
    )


def constant_loads(seen: Evidence) -> list[Problem] | None:
    """The same loads in every step."""

    def wrong(log: Imbalance) -> str:
        if not log.constant_loads or log.steps < MIN_CONSTANT:
            return ""
        return f"all {log.steps} steps have the same loads: that is not live traffic"

    return problems("invalid", seen.natural, wrong, OWN_RECORDER)


def same_cv(seen: Evidence) -> list[Problem] | None:
    """Datasets differ in CV, as no two samples of traffic are alike."""

    def wrong(kinds: Sequence[Sequence[float]]) -> str:
        alike = [cvs for cvs in kinds if max(cvs) - min(cvs) <= SAME_CV * max(cvs)]
        if not alike:
            return ""
        same = f"identical CV ({alike[0][0]:.3f}) in every one of {len(alike[0])} datasets"
        return f"{same}: traffic cannot be the cause"

    enough = {
        name: [cvs for cvs in kinds if len(cvs) >= MIN_CVS] for name, kinds in seen.cvs.items()
    }
    known = {name: kinds for name, kinds in enough.items() if kinds}
    return problems("invalid", known, wrong, OWN_RECORDER)


def sums_of_loads(seen: Evidence) -> list[Problem] | None:
    """Σ over experts is top_k × tokens in every layer of every step."""

    def wrong(log: Imbalance) -> str:
        what = "the loads of a layer do not add up to top_k × tokens"
        return f"in {log.violations} of {log.steps} steps {what}" if log.violations else ""

    remedy = (
        "do not use these counts; the files beside the gate logs name the layers that were not seen"
    )
    return problems("invalid", seen.routing, wrong, remedy)


def number_of_steps(seen: Evidence) -> list[Problem] | None:
    """Enough steps for an interval."""

    def wrong(log: Imbalance) -> str:
        if log.steps >= MIN_STEPS:
            return ""
        return f"n = {log.steps} steps; a reliable interval of a CV needs {MIN_STEPS}"

    return problems("doubtful", seen.routing, wrong, "raise output_len or num_prompts")


def stalled_steps(seen: Evidence) -> list[Problem] | None:
    """A run's longest step is not far longer than its tokens account for, as when a kernel is
    compiled during the run.

    Usual is the run's median decode step and, for each token, what the longest steps of the
    backend's runs take beyond that (median over runs, so that nothing is seen where half of them
    stall).
    """
    by_backend: dict[str, dict[str, tuple[LongestStep, float]]] = defaultdict(dict)
    for run, result in seen.results.items():
        if result.longest_step and result.decode_step_ms:
            by_backend[run.partition("/")[0]][run] = result.longest_step, result.decode_step_ms
    usual = {
        run: (step, ms) for runs in by_backend.values() for run, (step, ms) in _usual(runs).items()
    }

    def wrong(longest: tuple[LongestStep, float]) -> str:
        step, ms = longest
        if step.ms <= max(STALLED * ms, ms + STALL_MS):
            return ""
        return f"a step of {step.tokens} tokens took {step.ms:,.0f} ms; {ms:,.0f} ms are usual"

    remedy = (
        "TTFT or TPOT includes it; look for JIT in server.log and for other load,"
        " then delete the run's result and --resume"
    )
    return problems("doubtful", usual, wrong, remedy)


def _usual(runs: Mapping[str, tuple[LongestStep, float]]) -> dict[str, tuple[LongestStep, float]]:
    """The longest step of each run, and how many ms as many tokens usually take; empty of few
    runs."""
    if len(runs) < MIN_RUNS:
        return {}
    a_token = statistics.median(
        (step.ms - decode_ms) / step.tokens for step, decode_ms in runs.values()
    )
    return {
        run: (step, decode_ms + a_token * step.tokens) for run, (step, decode_ms) in runs.items()
    }


def missing_layers(seen: Evidence) -> list[Problem] | None:
    """As many layers in every run, and no gap in the numbers of layer files."""
    whole = max((log.layers for log in seen.routing.values()), default=0)

    def fewer(log: Imbalance) -> str:
        if log.layers >= whole:
            return ""
        return f"{log.layers} layers are in its gate log, {whole} in others"

    held = Counter(number for numbers in seen.layers.values() for number in numbers)
    usual = {number for number, folders in held.items() if 2 * folders > len(seen.layers)}

    def gaps(numbers: Sequence[int]) -> str:
        between = {*range(numbers[0], numbers[-1], _stride(numbers))}
        lost = sorted((between | usual) - {*numbers})
        return f"there is no log of layer {', '.join(map(str, lost))}" if lost else ""

    counts = problems(
        "invalid", seen.routing, fewer, "compare runs of one model only, with every layer recorded"
    )
    files = problems("invalid", seen.layers, gaps, "copy all files of the folder")
    return None if counts is None else [*counts, *(files or [])]


def _stride(numbers: Sequence[int]) -> int:
    """Every how many layers a model has experts: its last layer of each group (1, 3, 5), or what
    four files agree on. Else 1: with 0 and 2 alone, it is layer 1 that was lost."""
    stride = min((b - a for a, b in itertools.pairwise(numbers)), default=1)
    if len(numbers) < MIN_STRIDED and numbers[0] % stride != stride - 1:
        return 1
    return stride


def missing_ranks(seen: Evidence) -> list[Problem] | None:
    """Every expert-parallel rank got tokens."""

    def wrong(log: Imbalance) -> str:
        idle = [rank for rank, load in enumerate(log.rank_loads) if not load]
        if not idle:
            return ""
        return f"rank {idle[0]} of {len(log.rank_loads)} got no token in the whole run"

    with_ranks = {run: log for run, log in seen.natural.items() if log.rank_loads}
    return problems("doubtful", with_ranks, wrong, "see its log: a rank that serves gets tokens")


def recorded_tokens(seen: Evidence) -> list[Problem] | None:
    """Every token of a run is in the gate log, once."""
    known = {
        run: (r.gate_log.tokens_due, r.gate_log.tokens_seen, r.completed == r.num_prompts)
        for run, r in seen.results.items()
        if r.gate_log and r.measured_imbalance and r.gate_log.tokens_due is not None
    }

    def wrong(tokens: tuple[int, int, bool]) -> str:
        due, got, is_complete = tokens
        if got < due:
            return f"{got} of {due} tokens are in the gate log"
        if got > due and is_complete:  # else what failed was computed too
            return (
                f"{got} tokens are in the gate log, {due} were due:"
                " some were computed twice, or are not this run's"
            )
        return ""

    def severity(tokens: tuple[int, int, bool]) -> Severity:
        due, got, _ = tokens
        return "invalid" if got < (1 - TOKENS_LOST) * due else "doubtful"

    remedy = (
        "see server.log and the files beside the gate logs"
        " for cached prompts, preemptions, retries, dropped steps"
    )
    return problems(severity, known, wrong, remedy)


def recorder_reports(seen: Evidence) -> list[Problem] | None:
    """The recorder had nothing to report: no refusal, no failure of its own, no dropped step, no
    silent router."""
    return problems(
        "doubtful",
        seen.recorders,
        "; ".join,
        "fix this and run again: part of the routing is missing",
    )


def random_prompts(seen: Evidence) -> list[Problem] | None:
    """The prompts are not random tokens, as load generators send them."""
    return problems(
        "doubtful",
        seen.prompts,
        str,
        "random tokens skew a router in a way of their own: send text like that of your users",
    )


def measured_routing(seen: Evidence) -> list[Problem] | None:
    """Every run has a measured imbalance."""
    ours = {run: r for run, r in seen.results.items() if r.gate_log}

    def wrong(result: Result) -> str:
        if result.measured_imbalance:
            return ""
        return result.measured_imbalance_reason or "no imbalance was measured"

    return problems(
        "invalid",
        ours,
        wrong,
        "its times are valid, but say nothing about skew; see: gatescope doctor",
    )
