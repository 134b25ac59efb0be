"""`gatescope bench`: one data set at a running OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import datetime
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import httpx

from core import dataset, metrics, predict, store
from core.config import ConfigError
from core.load import client
from core.load.client import Load


def run(
    *,
    dataset_path: Path,
    base_url: str,
    model: str | None,
    num_prompts: int,
    input_len: int,
    output_len: int,
    request_rate: float | Literal["inf"],
    max_concurrency: int,
    seed: int,
    result_dir: Path | None,
    json: bool,
) -> int:
    """Send each prompt once; 0 where all were answered, else 1. ConfigError where the server cannot be asked.

    The API key is read from OPENAI_API_KEY or VLLM_API_KEY.
    """
    data = dataset.read(dataset_path, dataset.index_of(dataset_path, 1))
    api_key = os.environ.get("OPENAI_API_KEY") or os.environ.get("VLLM_API_KEY") or ""
    load = Load(
        base_url=base_url.rstrip("/").removesuffix("/v1"),
        model=model or _first_model(base_url, api_key),
        label=data.index,
        prompts=data.prompts[:num_prompts],
        api_key=api_key,
        input_len=input_len,
        output_len=output_len,
        request_rate=request_rate,
        max_concurrency=max_concurrency,
        seed=seed,
    )
    try:
        records = asyncio.run(client.run(load))
    except httpx.HTTPError as error:
        raise ConfigError(f"{base_url}: {type(error).__name__}: {error}") from None
    figures = metrics.summarise(records)
    prediction = predict.predict([p.text for p in load.prompts])
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"),
        "backend": base_url,
        "model_id": load.model,
        "dataset_name": data.index,
        "dataset_path": str(dataset_path),
        "request_rate": request_rate,
        **metrics.as_result(records, figures),
        **prediction.as_result(),
    }
    if result_dir:
        store.write_whole(result_dir / f"{data.index}.json", store.formatted(result))
        print(f"wrote {result_dir / f'{data.index}.json'}", file=sys.stderr)
    if json:
        sys.stdout.write(store.formatted(result).decode())
    for key, value in asdict(figures).items():
        print(f"{key:<24}{value if not isinstance(value, float) else format(value, '.3f')}", file=sys.stderr)
    return 0 if figures.completed == figures.num_prompts else 1


def _first_model(base_url: str, api_key: str) -> str:
    url = base_url.rstrip("/").removesuffix("/v1") + "/v1/models"
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx.get(url, headers=headers, timeout=10, trust_env=False).raise_for_status().json()
        return str(answer["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{url}: no model named there ({type(error).__name__}: {error}); name one with --model"
        ) from None
