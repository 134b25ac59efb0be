"""`gatescope bench`: one dataset at a running OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec

from core import fetch, files
from core.errors import BackendError
from core.load import client, metrics
from core.load.client import Load, LoadError
from core.load.metrics import Metrics
from core.load.record import Progress, Records
from core.load.trust import Trust, trust
from core.rundir import result
from core.terminal import printable
from core.workload import dataset, formats, predictor
from core.workload.predictor import Prediction

KEY_VARIABLES = ("OPENAI_API_KEY", "VLLM_API_KEY")
TELL_EVERY_S = 10.0
MODELS_S = 10.0


def run(
    *,
    dataset_path: Path,
    base_url: str,
    model: str | None,
    num_prompts: int,
    warmup_requests: int,
    result_dir: Path | None,
    json: bool,
    **wanted: Any,
) -> int:
    """Send each prompt once; 0 where all were answered, else 1. BackendError where the server
    cannot be asked.

    `wanted`: fields of core.load.client.Load. The API key is read from OPENAI_API_KEY or
    VLLM_API_KEY.
    """
    data = formats.read(dataset_path, dataset.index_of(dataset_path, 1))
    api_key = next((key for name in KEY_VARIABLES if (key := os.environ.get(name))), "")
    base_url = base_url.rstrip("/").removesuffix("/v1")
    load = Load(
        base_url=base_url,
        model=model or _first_model(base_url, api_key, wanted["headers"]),
        label=data.index,
        prompts=data.prompts[:num_prompts],
        api_key=api_key,
        **wanted,
    )
    try:
        records = asyncio.run(_warmed_up(load, warmup_requests))
    except (httpx.HTTPError, httpx.InvalidURL, LoadError) as error:
        raise BackendError(f"{base_url}: {type(error).__name__}: {error}") from None
    figures = metrics.summarise(records, load.slo)
    taken = result.of_load(
        load,
        records,
        figures,
        predicted(load),
        backend=load.base_url,
        dataset=data.index,
        path=str(dataset_path),
    )
    if result_dir:
        file = result_dir / f"{data.index}.json"
        files.write_whole(file, files.formatted(taken))
        _tell(f"wrote {file}")
    if json:
        sys.stdout.write(files.formatted(taken).decode())
    _tell("\n".join(_lines(figures, trust(records.workers, figures))))
    return 0 if figures.completed == figures.num_prompts else 1


async def _warmed_up(load: Load, warmup_requests: int) -> Records:
    """The load's records; the warm-up's are in no figure."""
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
                f"{ended} of {len(load.prompts)} requests, {progress.output_tokens} tokens, {progress.errors} errors"
            )

    return await client.run(load, on_progress=tell)


def predicted(load: Load) -> Prediction | None:
    """The score of the texts; None if they have none."""
    try:
        return predictor.predict([p.text for p in load.prompts])
    except ValueError:
        return None


def _lines(figures: Metrics, verdict: Trust) -> list[str]:
    """The result for people: a table of times, rates, and how far to trust them."""
    rows = [f"{'ms':<16}{'mean':>10}{'median':>10}{'p99':>10}{'max':>10}"]
    for name, title in (
        ("ttft", "TTFT"),
        ("ttft_from_due", "TTFT from due"),
        ("tpot", "TPOT"),
        ("itl", "ITL"),
        ("e2e", "E2E"),
    ):
        values = [
            getattr(figures, f"{kind}_{name}_ms") for kind in ("mean", "median", "p99", "max")
        ]
        rows.append(
            f"{title:<16}"
            + "".join(f"{'–' if v is None else format(v, '.2f'):>10}" for v in values)
        )
    goodput = (
        "" if figures.request_goodput is None else f", goodput {figures.request_goodput:.2f}/s"
    )
    failed = "".join(f"; {count} × {kind}" for kind, count in figures.errors_by_kind.items())
    return [
        f"{figures.completed} of {figures.num_prompts} requests in {figures.duration:.2f} s:"
        f" {figures.request_throughput:.2f} requests/s{goodput}, {figures.output_throughput:.1f} tokens/s{failed}",
        *rows,
        f"stamps: {verdict.stamps}; {verdict.workers} load workers, {verdict.cpu_share or 0:.0%} of a core at most",
        *verdict.warnings,
    ]


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def _first_model(base_url: str, api_key: str, headers: tuple[tuple[str, str], ...]) -> str:
    url = base_url + "/v1/models"
    key = [("Authorization", f"Bearer {api_key}")] if api_key else []

    async def asked() -> _Models:
        trusted = ssl.create_default_context()  # as for the load: the system's, and SSL_CERT_FILE's
        async with httpx.AsyncClient(trust_env=False, timeout=MODELS_S, verify=trusted) as client:
            answer = await fetch.whole(
                client, "GET", url, within_s=MODELS_S, headers=[*key, *headers]
            )
            return fetch.decoded(answer, _Models)

    try:
        return asyncio.run(asked()).data[0].id
    except (httpx.HTTPError, httpx.InvalidURL, LookupError) as error:
        raise BackendError(
            f"{url}: no model named there ({type(error).__name__}: {error}); name one with --model"
        ) from None


def _tell(text: str) -> None:
    print(printable(text), file=sys.stderr)
