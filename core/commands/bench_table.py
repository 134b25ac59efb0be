"""The result of `gatescope bench` for people: rates, failures, a table of times, what was counted,
and how far to trust it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from core.terminal import shown

if TYPE_CHECKING:
    from core.load.trust import Trust
    from core.rundir.result import Result

MOST_ERRORS = 5
TIMES = {
    "ttft": "TTFT",
    "ttft_from_due": "TTFT from due",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "E2E",
}
COUNTED = {
    "usage": "by the server's usage",
    "tokenizer": "by the server's tokenizer, for want of usage",
    "events": "as one an event, for want of usage and a tokenizer",
}


def lines(result: Result, verdict: Trust) -> list[str]:
    workers = "1 load worker" if verdict.workers == 1 else f"{verdict.workers} load workers"
    return [
        _rates(result),
        *_failures(result),
        f"{'ms':<16}{'mean':>10}{'median':>10}{'p99':>10}{'max':>10}",
        *(_times(result, name, title) for name, title in TIMES.items()),
        *_p99s(result),
        *_reasons(result),
        *_tokens(result),
        *_short_answers(result),
        f"timestamps: {verdict.stamps}; {workers}, {verdict.cpu_share or 0:.0%} of a core at most",
        *verdict.warnings,
    ]


def _rates(result: Result) -> str:
    goodput = f", goodput {shown(result.request_goodput, '.2f')}/s" if result.slo else ""
    return (
        f"{result.completed} of {result.num_prompts} requests in {shown(result.duration, '.2f')} s:"
        f" {shown(result.request_throughput, '.2f')} requests/s{goodput},"
        f" {shown(result.output_throughput, '.1f')} tokens/s"
    )


def _failures(result: Result) -> list[str]:
    """The errors in the server's words, the most frequent first."""
    errors = Counter(error for error in result.errors if error)
    told = [f"  {count} × {error}" for error, count in errors.most_common(MOST_ERRORS)]
    if others := len(errors) - len(told):
        told.append(f"  and {others} other errors: see `errors` in the result (--json)")
    return told


def _times(result: Result, name: str, title: str) -> str:
    kinds = ("mean", "median", "p99", "max")
    values = [getattr(result, f"{kind}_{name}_ms") for kind in kinds]
    return f"{title:<16}" + "".join(f"{shown(value, '.2f'):>10}" for value in values)


def _p99s(result: Result) -> list[str]:
    """The interval of every p99 that has one: `TTFT 812.40 to 901.12`, `E2E from 812.40`."""
    found = {t: getattr(result, f"p99_{name}_ms_interval", None) for name, t in TIMES.items()}
    parts = [f"{title} {_ends(*ends)}" for title, ends in found.items() if ends]
    return [f"p99, 95 % interval over requests: {'; '.join(parts)}"] if parts else []


def _ends(low: float, high: float | None) -> str:
    return f"from {low:.2f}" if high is None else f"{low:.2f} to {high:.2f}"


def _reasons(result: Result) -> list[str]:
    """Why figures are missing, or lack some requests."""
    found = {
        "TPOT, ITL": result.tpot_ms_reason,
        "E2E": result.e2e_ms_reason,
        "rates": result.output_throughput_reason,
    }
    return [f"{name}: {reason}" for name, reason in found.items() if reason]


def _tokens(result: Result) -> list[str]:
    """What tokens were counted from, and how many of them had text."""
    if not result.completed:
        return []
    sources = [
        f"{COUNTED[source]}" + (f" ({count} answers)" if len(result.output_tokens_from) > 1 else "")
        for source, count in result.output_tokens_from.items()
    ]
    told = [f"{result.total_output_tokens} output tokens, counted {', '.join(sources)}"]
    hidden = sum(
        n - visible
        for n, visible, error in zip(
            result.output_lens, result.visible_tokens, result.errors, strict=True
        )
        if visible is not None and not error
    )
    if hidden > 0:
        told.append(f"{hidden} of them came without text")
    if result.total_input_tokens_reason:
        told.append(f"prompt tokens unknown: {result.total_input_tokens_reason}")
    else:
        told.append(f"{result.total_input_tokens} prompt tokens")
    return ["tokens: " + "; ".join(told)]


def _short_answers(result: Result) -> list[str]:
    asked = result.asked_output_len
    done = [n for n, error in zip(result.output_lens, result.errors, strict=True) if not error]
    short = [n for n in done if asked is not None and n < asked]
    if not short:
        return []
    have = "has" if len(short) == 1 else "have"
    return [
        f"{len(short)} of {len(done)} answers {have} fewer than the {asked} tokens asked for,"
        f" the shortest {min(short)}: does the server honour ignore_eos, and how long is its"
        " max_model_len?"
    ]
