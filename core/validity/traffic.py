"""Rules about requests: whether all were answered in full, alike by every backend, long enough, and
not held up by the client or the API server."""

from __future__ import annotations

from collections.abc import Sequence

from core.load.trust import Trust
from core.rundir.result import Result
from core.validity.evidence import Evidence
from core.validity.problem import Problem, Severity, problems

MIN_WINDOW_S = 0.25  # a pause of 10 ms (a garbage collection, another process) is 4 % of it
LATE = 0.02  # of a run's time
LATE_MS = 50.0  # less may be a few decode steps
# Share of tokens: beyond it the work differs by as much as the effects that are looked for
UNEQUAL = 0.01


def readable_results(seen: Evidence) -> list[Problem] | None:
    """Every result file can be read."""
    every = {**dict.fromkeys(seen.results, ""), **seen.unreadable}
    return problems(
        "invalid", every, lambda why: why and f"unreadable: {why}", "delete the file and --resume"
    )


def possible_figures(seen: Evidence) -> list[Problem] | None:
    """No figure of a result, and no CV, is NaN, infinite, negative or there twice."""
    every: dict[str, Sequence[str]] = {**dict.fromkeys(seen.results, ()), **seen.impossible}

    def wrong(phrases: Sequence[str]) -> str:
        return f"taken as unknown: {'; '.join(phrases)}" if phrases else ""

    remedy = "all other figures are used; look at what wrote the file"
    return problems("doubtful", every, wrong, remedy)


def failed_runs(seen: Evidence) -> list[Problem] | None:
    """Every run that was started ended well."""
    started = {
        run: seen.journal.failed.get(run, "")
        for run in {**seen.journal.started, **seen.journal.failed}
    }
    remedy = "comparisons lack them; fix the cause, then: gatescope --resume RUN_DIR"
    return problems("doubtful", started, lambda why: why and f"failed: {why}", remedy)


def failed_requests(seen: Evidence) -> list[Problem] | None:
    """Every request of a run was answered: those that fail are seldom a random part of all."""

    def wrong(result: Result) -> str:
        failed = result.num_prompts - result.completed
        if failed <= 0:
            return ""
        return f"{failed} of {result.num_prompts} requests failed, and no figure counts them"

    return problems("doubtful", seen.results, wrong, "errors in its result file say why")


def answer_lengths(seen: Evidence) -> list[Problem] | None:
    """Every answer has the asked number of tokens."""
    asked = seen.config.experiment.output_len if seen.config else 0

    def wrong(result: Result) -> str:
        if not result.completed or result.total_output_tokens == asked * result.completed:
            return ""
        tokens = result.total_output_tokens / result.completed
        return f"{tokens:.1f} tokens per answer; {asked} were requested"

    remedy = "check whether the server honours ignore_eos, and max_model_len"
    return problems("doubtful", seen.results if asked else {}, wrong, remedy)


def equal_work(seen: Evidence) -> list[Problem] | None:
    """The same prompt and output tokens of a dataset at every backend."""
    first: dict[str, Result] = {}  # of each label, at the backend that ran it first
    pairs: dict[str, tuple[Result, Result]] = {}
    for run, result in seen.results.items():
        if result.total_input_tokens is None:
            continue
        label = run.partition("/")[2]
        if label in first:
            pairs[run] = first[label], result
        first.setdefault(label, result)

    def wrong(pair: tuple[Result, Result]) -> str:
        one, other = map(_tokens, pair)
        return f"{_shown(other)}, at the first backend {_shown(one)}" if one != other else ""

    def severity(pair: tuple[Result, Result]) -> Severity:
        apart = max(abs(a - b) / max(a, b, 1) for a, b in zip(*map(_tokens, pair), strict=True))
        return "invalid" if apart > UNEQUAL else "doubtful"

    remedy = (
        "do not compare the backends on these; look at failed requests, tokenizers, max_model_len"
    )
    return problems(severity, pairs, wrong, remedy)


def _tokens(result: Result) -> tuple[int, int]:
    return result.total_input_tokens or 0, result.total_output_tokens


def _shown(tokens: tuple[int, int]) -> str:
    return f"{tokens[0]} prompt and {tokens[1]} output tokens"


def window(seen: Evidence) -> list[Problem] | None:
    """The measured time is long enough."""

    def wrong(duration: float) -> str:
        if duration >= MIN_WINDOW_S:
            return ""
        return f"it lasted {duration:.2f} s, under {MIN_WINDOW_S:g} s"

    durations = {run: r.duration for run, r in seen.results.items() if r.duration is not None}
    return problems("doubtful", durations, wrong, "raise num_prompts or output_len")


def client_limits(seen: Evidence) -> list[Problem] | None:
    """The server, not the load client, made the figures what they are, and no clock jumped."""
    clients = {run: r.client for run, r in seen.results.items() if r.client}

    def wrong(client: Trust) -> str:
        return client.warnings[0] if client.warnings else ""

    return problems(
        "doubtful",
        clients,
        wrong,
        "give the client cores of its own, or send less at once; look for a proxy that buffers",
    )


def delivery_lag(seen: Evidence) -> list[Problem] | None:
    """The last token arrives soon after the last engine step: the API server keeps up with its
    engine."""
    lags = {
        run: (r.delivery_lag_ms, r.duration)
        for run, r in seen.results.items()
        if r.delivery_lag_ms is not None and r.duration
    }

    def wrong(late: tuple[float, float]) -> str:
        lag_ms, duration = late
        share = lag_ms / 1e3 / duration
        if share <= LATE or lag_ms <= LATE_MS:
            return ""
        late_by = f"the last token arrived {lag_ms:,.0f} ms after the last engine step"
        return f"{late_by}, {share:.0%} of the run's time"

    remedy = (
        "TTFT and TPOT include this, decode steps do not;"
        " the API server cannot keep up: send less at once"
    )
    return problems("doubtful", lags, wrong, remedy)
