"""`gatescope bench`: sends one dataset to a running OpenAI-compatible server."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands import arguments as arg
from core.errors import BackendError
from core.terminal import printable, shown

if TYPE_CHECKING:
    from core.load.client import Load
    from core.load.metrics import Metrics
    from core.load.record import Progress, Records
    from core.load.trust import Trust
    from core.rundir.result import Result
    from core.workload.predictor import Prediction

KEY_VARIABLES = ("OPENAI_API_KEY", "VLLM_API_KEY")
TELL_EVERY_S = 10.0
TIMES = {
    "ttft": "TTFT",
    "ttft_from_due": "TTFT from due",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "E2E",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset",
        type=Path,
        metavar="DATASET",
        help="JSON lines with text or prompt, or a ShareGPT JSON file",
    )
    _add_server(parser)
    _add_requests(parser)
    _add_rate(parser)
    parser.add_argument(
        "--slo",
        type=arg.slo,
        default={},
        metavar="ttft_ms=500,tpot_ms=50",
        help="latency limits that a request must meet to count for goodput; e2e_ms too",
    )
    parser.add_argument(
        "--load-workers",
        type=arg.workers,
        default="auto",
        metavar="N",
        help='client processes, or "auto" (default: auto)',
    )
    parser.add_argument(
        "--result-dir", type=Path, metavar="DIR", help="write DIR/<dataset index>.json"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")


def _add_server(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--base-url", metavar="URL", help="server, such as http://host:8000")
    where.add_argument(
        "--port", type=arg.port, metavar="P", help="port of a server on this machine"
    )
    parser.add_argument(
        "--model", metavar="ID", help="model to request (default: the first in /v1/models)"
    )
    parser.add_argument(
        "--header",
        type=arg.header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="header to add to every request; repeatable",
    )


def _add_requests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-prompts",
        type=arg.at_least(1),
        default=30,
        metavar="N",
        help="send at most this many prompts of the dataset (default: 30)",
    )
    parser.add_argument(
        "--input-len",
        type=arg.at_least(0),
        default=0,
        metavar="N",
        help="cut or repeat each prompt to N tokens (default: 0, as written)",
    )
    parser.add_argument(
        "--output-len",
        type=arg.at_least(1),
        default=50,
        metavar="N",
        help="tokens that each request generates (default: 50)",
    )
    parser.add_argument(
        "--temperature",
        type=arg.temperature,
        default=0.0,
        metavar="T",
        help="0 is greedy; above, request i is drawn with --seed + i (default: 0)",
    )
    parser.add_argument(
        "--warmup",
        type=arg.at_least(0),
        default=0,
        metavar="N",
        help="requests to send first and leave out of the results (default: 0)",
    )
    parser.add_argument(
        "--chat", action="store_true", help="use /v1/chat/completions instead of /v1/completions"
    )
    parser.add_argument(
        "--extra-body",
        type=arg.json_object,
        default={},
        metavar="JSON",
        help="object to merge into every request body; null removes a field",
    )
    parser.add_argument(
        "--stall-timeout",
        type=arg.above_zero,
        default=120.0,
        metavar="S",
        help="seconds without a new token after which a request has failed (default: 120)",
    )


def _add_rate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--request-rate",
        type=arg.rate,
        default="inf",
        metavar="R",
        help='requests per second, or "inf" for all at once (default: inf)',
    )
    parser.add_argument(
        "--arrival",
        choices=("poisson", "constant", "trace"),
        default="poisson",
        help="how requests are spaced at a rate; trace: at the dataset's timestamps"
        " (default: poisson)",
    )
    parser.add_argument(
        "--burstiness",
        type=arg.above_zero,
        default=1.0,
        metavar="B",
        help="shape of the gamma distribution of intervals: 1 is Poisson, less is burstier"
        " (default: 1)",
    )
    parser.add_argument(
        "--ramp-up",
        type=arg.seconds,
        default=0.0,
        metavar="S",
        help="seconds until the full rate or concurrency is reached (default: 0)",
    )
    parser.add_argument(
        "--max-concurrency",
        type=arg.at_least(0),
        default=0,
        metavar="N",
        help="requests in flight at most (default: 0, no limit)",
    )
    parser.add_argument(
        "--seed",
        type=arg.at_least(0),
        default=0,
        metavar="N",
        help="random seed of the arrivals and, at a temperature, of the answers (default: 0)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Send each prompt once; 0 if all were answered, else 1. BackendError if the server cannot be
    reached."""
    import asyncio

    import httpx

    from core.load import metrics
    from core.load.client import LoadError
    from core.load.trust import trust

    load = _load(arguments)
    try:
        records = asyncio.run(_warmed_up(load, arguments.warmup))
    except (httpx.HTTPError, httpx.InvalidURL, LoadError) as error:
        raise BackendError(f"{load.base_url}: {type(error).__name__}: {error}") from None
    figures = metrics.summarise(records, load.slo)
    _write(arguments, _result(arguments.dataset, load, records, figures))
    _tell("\n".join(_lines(figures, trust(records.workers, figures))))
    return 0 if figures.completed == figures.num_prompts else 1


def _load(arguments: argparse.Namespace) -> Load:
    """The load that the arguments describe. The API key comes from OPENAI_API_KEY or
    VLLM_API_KEY."""
    from core.load import models
    from core.load.client import Load
    from core.workload import dataset, formats

    data = formats.read(arguments.dataset, dataset.index_of(arguments.dataset, 1))
    api_key = next((key for name in KEY_VARIABLES if (key := os.environ.get(name))), "")
    given = arguments.base_url or f"http://127.0.0.1:{arguments.port}"
    base_url = given.rstrip("/").removesuffix("/v1")
    headers = tuple(arguments.header)
    return Load(
        base_url=base_url,
        model=arguments.model or models.first(base_url, api_key, headers),
        label=data.index,
        prompts=data.prompts[: arguments.num_prompts],
        api_key=api_key,
        headers=headers,
        chat=arguments.chat,
        extra_body=arguments.extra_body,
        input_len=arguments.input_len,
        output_len=arguments.output_len,
        temperature=arguments.temperature,
        request_rate=arguments.request_rate,
        arrival=arguments.arrival,
        burstiness=arguments.burstiness,
        ramp_up_s=arguments.ramp_up,
        max_concurrency=arguments.max_concurrency,
        seed=arguments.seed,
        stall_timeout_s=arguments.stall_timeout,
        workers=arguments.load_workers,
        slo=arguments.slo,
    )


def _result(path: Path, load: Load, records: Records, figures: Metrics) -> Result:
    from core.rundir import result

    return result.of_load(
        load,
        records,
        figures,
        _predicted(load),
        backend=load.base_url,
        dataset=load.label,
        path=str(path),
    )


def _write(arguments: argparse.Namespace, result: Result) -> None:
    """Write the result to the folder, and to stdout, if these are asked for."""
    from core import files

    if arguments.result_dir:
        file = arguments.result_dir / f"{result.dataset_name}.json"
        files.write_whole(file, files.formatted(result))
        _tell(f"wrote {file}")
    if arguments.json:
        sys.stdout.write(files.formatted(result).decode())


async def _warmed_up(load: Load, warmup_requests: int) -> Records:
    """The load's records; those of the warm-up are left out."""
    from dataclasses import replace

    from core.load import client

    if warmup_requests:
        prompts = tuple(load.prompts[i % len(load.prompts)] for i in range(warmup_requests))
        await client.run(
            replace(load, prompts=prompts, label="warmup", request_rate="inf", arrival="poisson")
        )
    told_at = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told_at
        if time.monotonic() - told_at > TELL_EVERY_S:
            told_at = time.monotonic()
            ended = progress.done + progress.errors
            _tell(
                f"{ended} of {len(load.prompts)} requests, {progress.output_tokens} tokens,"
                f" {progress.errors} errors"
            )

    return await client.run(load, on_progress=tell)


def _predicted(load: Load) -> Prediction | None:
    """Upstream's score of the texts; None if they have none."""
    from core.workload import predictor

    try:
        return predictor.predict([p.text for p in load.prompts])
    except ValueError:
        return None


def _lines(figures: Metrics, verdict: Trust) -> list[str]:
    """The result for people: a table of times, rates, and how far to trust them."""
    workers = "1 load worker" if verdict.workers == 1 else f"{verdict.workers} load workers"
    return [
        _rates(figures),
        f"{'ms':<16}{'mean':>10}{'median':>10}{'p99':>10}{'max':>10}",
        *(_times(figures, name, title) for name, title in TIMES.items()),
        f"timestamps: {verdict.stamps}; {workers}, {verdict.cpu_share or 0:.0%} of a core at most",
        *verdict.warnings,
    ]


def _rates(figures: Metrics) -> str:
    goodput = (
        "" if figures.request_goodput is None else f", goodput {figures.request_goodput:.2f}/s"
    )
    failed = "".join(f"; {count} × {kind}" for kind, count in figures.errors_by_kind.items())
    return (
        f"{figures.completed} of {figures.num_prompts} requests in {figures.duration:.2f} s:"
        f" {figures.request_throughput:.2f} requests/s{goodput},"
        f" {figures.output_throughput:.1f} tokens/s{failed}"
    )


def _times(figures: Metrics, name: str, title: str) -> str:
    kinds = ("mean", "median", "p99", "max")
    values = [getattr(figures, f"{kind}_{name}_ms") for kind in kinds]
    return f"{title:<16}" + "".join(f"{shown(value, '.2f'):>10}" for value in values)


def _tell(text: str) -> None:
    print(printable(text), file=sys.stderr)
