"""aiohttp as it is used for load: "upstream" (a session a request, lines, stamps after the parse)
or "raw" chunks."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from itertools import pairwise
from pathlib import Path

import aiohttp

now = time.perf_counter


async def upstream(url: str, body: dict) -> dict:
    async with aiohttp.ClientSession(
        trust_env=True, timeout=aiohttp.ClientTimeout(total=6 * 60 * 60)
    ) as session:
        start, last, ttft, itl = now(), 0.0, 0.0, []
        async with session.post(
            url, json=body, headers={"Authorization": "Bearer None"}
        ) as response:
            async for line in response.content:
                line = line.strip()
                if not line:
                    continue
                payload = line.decode().removeprefix("data: ")
                if payload == "[DONE]":
                    continue
                event = json.loads(payload)
                if event["choices"] and event["choices"][0]["text"]:
                    at = now()
                    if not ttft:
                        ttft = at - start
                    else:
                        itl.append(at - last)
                    last = at
    return {"prompt": body["prompt"], "ttft": ttft, "itl": itl}


async def raw(url: str, body: dict, session: aiohttp.ClientSession) -> dict:
    start, stamps, rest = now(), [], b""
    async with session.post(url, json=body) as response:
        async for chunk in response.content.iter_any():
            at = now()
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                if event == b"data: [DONE]":
                    continue
                fields = json.loads(event[6:])
                if fields["choices"] and fields["choices"][0]["text"]:
                    stamps.append(at)
    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    return {"prompt": body["prompt"], "ttft": stamps[0] - start, "itl": gaps}


async def run(a: argparse.Namespace) -> list[dict]:
    prompts = [json.loads(line)["prompt"] for line in Path(a.prompts).read_text().splitlines()][
        : a.count
    ]
    gate = asyncio.Semaphore(a.concurrency)
    url = a.url + "/v1/completions"
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    ) as session:

        async def one(prompt: str) -> dict:
            body = {"model": "truth", "prompt": prompt, "max_tokens": a.tokens, "stream": True}
            async with gate:
                return await (
                    upstream(url, body) if a.way == "upstream" else raw(url, body, session)
                )

        return list(await asyncio.gather(*(one(p) for p in prompts)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=("upstream", "raw"))
    parser.add_argument("url")
    parser.add_argument("prompts")
    parser.add_argument("count", type=int)
    parser.add_argument("concurrency", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("out")
    arguments = parser.parse_args()
    Path(arguments.out).write_text(json.dumps(asyncio.run(run(arguments))))
