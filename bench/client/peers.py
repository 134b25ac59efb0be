"""The clients under test: how to start each on a file of prompts, and how to read its result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.client.errors import Row

HERE = Path(__file__).parent
VLLM_PYTHON = (
    "from vllm.benchmarks.serve import add_cli_args, main;"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser;"
    "p = FlexibleArgumentParser(); add_cli_args(p); main(p.parse_args())"
)


@dataclass(frozen=True)
class Task:
    """`count` requests of `tokens` tokens, `concurrency` at a time; the client's result goes into
    the folder `out`."""

    url: str
    prompts: Path  # JSONL of {"prompt": …}
    count: int
    concurrency: int
    tokens: int
    out: Path


@dataclass(frozen=True)
class Peer:
    name: str
    command: Callable[[Task], list[str]]
    rows: Callable[[Task], list[Row]]
    is_slow: bool = False  # takes ten seconds and more to start


def words(flags: dict[str, object]) -> list[str]:
    """The flags as they stand on a command line."""
    return [str(word) for pair in flags.items() for word in pair]


def gatescope() -> Peer:
    """`gatescope bench`, as a user runs it."""

    def command(t: Task) -> list[str]:
        flags = {
            "--model": "truth",
            "--num-prompts": t.count,
            "--output-len": t.tokens,
            "--max-concurrency": t.concurrency,
            "--base-url": t.url,
            "--result-dir": t.out,
        }
        start = [sys.executable, "-P", "-m", "core.cli", "bench", str(t.prompts)]
        return start + words(flags)

    def rows(t: Task) -> list[Row]:
        lines = t.prompts.read_text().splitlines()[: t.count]
        prompts = [json.loads(line)["prompt"] for line in lines]
        result = json.loads(next(t.out.glob("*.json")).read_text())
        return [
            Row(p, ttft, itl)
            for p, ttft, itl in zip(prompts, result["ttfts"], result["itls"], strict=True)
            if ttft
        ]

    return Peer("gatescope", command, rows)


def vllm_rs(binary: Path) -> Peer:
    """vLLM's Rust client."""
    return Peer("vllm-rs", lambda t: [str(binary), "bench", "serve", *_vllm_flags(t)], _vllm_rows)


def vllm_bench(python: Path) -> Peer:
    """`vllm bench serve` in Python."""
    return Peer(
        "vllm (Python)",
        lambda t: [str(python), "-c", VLLM_PYTHON, *_vllm_flags(t)],
        _vllm_rows,
        is_slow=True,
    )


def sglang_rs(folder: Path) -> Peer:
    """SGLang's Rust client; `folder` holds its `_bench.*.so`. It sends prompts of its own and names
    none of them, so that an answer is known by its letters."""

    def command(t: Task) -> list[str]:
        flags = {
            "--backend": "vllm",
            "--base-url": t.url,
            "--model": "truth",
            "--tokenizer": t.prompts.parent / "tokenizer",
            "--dataset-name": "random-ids",
            "--random-input-len": 16,
            "--random-output-len": t.tokens,
            "--random-range-ratio": 1,
            "--num-prompts": t.count,
            "--max-concurrency": t.concurrency,
            "--warmup-requests": 0,
            "--output-file": t.out / "r.json",
        }
        switches = ["--output-details", "--disable-tqdm", "--disable-retokenize"]
        start = f"import sys; sys.path.insert(0, {str(folder)!r}); import _bench"
        return [
            sys.executable,
            "-c",
            f"{start}; _bench.run_argv(sys.argv)",
            *words(flags),
            *switches,
        ]

    def rows(t: Task) -> list[Row]:
        result = json.loads((t.out / "r.json").read_text())
        seen = zip(result["generated_texts"], result["ttfts"], result["itls"], strict=True)
        return [Row(text[:4], ttft, itl) for text, ttft, itl in seen if text]

    return Peer("sglang-rs", command, rows)


def with_aiohttp(way: str, python: Path) -> Peer:
    """aiohttp_client.py, in one of its two ways."""

    def command(t: Task) -> list[str]:
        script, out = HERE / "aiohttp_client.py", t.out / "r.json"
        arguments = (way, t.url, t.prompts, t.count, t.concurrency, t.tokens, out)
        return [str(python), str(script), *map(str, arguments)]

    def rows(t: Task) -> list[Row]:
        return [
            Row(r["prompt"], r["ttft"], r["itl"])
            for r in json.loads((t.out / "r.json").read_text())
        ]

    return Peer(f"aiohttp ({way})", command, rows)


def aiperf(binary: Path) -> Peer:
    """aiperf; its gaps come from its raw records."""

    def command(t: Task) -> list[str]:
        flags = {
            "--url": t.url,
            "--endpoint-type": "completions",
            "--input-file": t.prompts.with_suffix(".aiperf.jsonl"),
            "--custom-dataset-type": "single_turn",
            "--dataset-sampling-strategy": "sequential",
            "--request-count": t.count,
            "--concurrency": t.concurrency,
            "--tokenizer": t.prompts.parent / "tokenizer",
            "--extra-inputs": f"max_tokens:{t.tokens}",
            "--artifact-dir": t.out,
            "--export-level": "raw",
            "--ui": "none",
        }
        return [str(binary), "profile", "-m", "truth", "--streaming", *words(flags)]

    def rows(t: Task) -> list[Row]:
        lines = next(t.out.rglob("*raw*.jsonl")).read_text().splitlines()
        return [_aiperf_row(json.loads(line)) for line in lines]

    return Peer("aiperf", command, rows, is_slow=True)


def guidellm(binary: Path) -> Peer:
    """guidellm; its report has TTFT but no gaps."""

    def command(t: Task) -> list[str]:
        server = f"target={t.url},model=truth,request_format=/v1/completions"
        flags: dict[str, object] = {
            "--backend": f"kind=openai_http,{server}",
            "--profile": f"kind=concurrent,streams={t.concurrency}",
            "--constraint": f"kind=max_requests,count={t.count}",
            "--data": f"kind=synthetic_text,prompt_tokens=16,output_tokens={t.tokens}",
            "--tokenizer": f"kind=hf_auto,model={t.prompts.parent / 'tokenizer'}",
            "--output": f"kind=json,path={t.out / 'r.json'}",
        }
        return [str(binary), "run", "--disable-console", *words(flags)]

    def rows(t: Task) -> list[Row]:
        done = json.loads((t.out / "r.json").read_text())["benchmarks"][0]["requests"]["successful"]
        prompts = [json.loads(r["request_args"])["body"]["prompt"] for r in done]
        return [
            Row(p, r["time_to_first_token_ms"] / 1e3, None)
            for p, r in zip(prompts, done, strict=True)
        ]

    return Peer("guidellm", command, rows, is_slow=True)


def _aiperf_row(record: dict[str, Any]) -> Row:
    start = record["start_perf_ns"]
    stamps = []
    for response in record["responses"]:
        text = json.dumps(response).replace(" ", "")
        if "[DONE]" not in text and '\\"choices\\":[]' not in text:
            stamps.append(response["perf_ns"])
    gaps = [(later - earlier) / 1e9 for earlier, later in pairwise(stamps)]
    return Row(record["payload"]["prompt"], (stamps[0] - start) / 1e9, gaps)


def _vllm_flags(t: Task) -> list[str]:
    flags = {
        "--backend": "openai",
        "--base-url": t.url,
        "--endpoint": "/v1/completions",
        "--model": "truth",
        "--tokenizer": t.prompts.parent / "tokenizer",
        "--dataset-name": "random",
        "--random-input-len": 16,
        "--random-output-len": t.tokens,
        "--request-id-prefix": "bench-",
        "--num-prompts": t.count,
        "--max-concurrency": t.concurrency,
        "--result-dir": t.out,
        "--result-filename": "r.json",
    }
    switches = ["--ignore-eos", "--disable-tqdm", "--save-result", "--save-detailed"]
    return words(flags) + switches


def _vllm_rows(t: Task) -> list[Row]:
    result = json.loads((t.out / "r.json").read_text())
    return [
        Row(i, ttft, itl)
        for i, (ttft, itl) in enumerate(zip(result["ttfts"], result["itls"], strict=True))
    ]
