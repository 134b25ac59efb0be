"""The gate log of a running server: every token that passes through the model is in it once, under
the label of its dataset."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.reference import forward, greedy
from support.running import KEY, Running, server

from core.builtin import checkpoint
from core.builtin.tokenizer import encode
from core.builtin.weights import Shape
from core.load import client
from core.load.client import Load
from core.load.metrics import RequestRecord
from core.routing import gatelog
from core.workload.dataset import Prompt

SHAPE = Shape()
MAX_NUM_SEQS, MAX_TOKENS = 4, 48


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "dp0_pp0.gatelog"


@pytest.fixture
def running(log: Path) -> Iterator[Running]:
    limits = ("--max-num-seqs", MAX_NUM_SEQS, "--max-num-batched-tokens", MAX_TOKENS)
    with server(
        *limits, "--tensor-parallel-size", 2, "--enable-expert-parallel", "--gate-log", log
    ) as running:
        yield running


def send(
    running: Running, label: str, texts: list[str], *, input_len: int | Sequence[int] = 0
) -> list[RequestRecord]:
    """The texts as one dataset, through the real load client."""
    prompts = [Prompt(str(i), text) for i, text in enumerate(texts)]
    load = Load(
        running.url, "builtin", label, prompts, api_key=KEY, input_len=input_len, output_len=10
    )
    records = asyncio.run(client.run(load))
    assert [record.error for record in records] == [""] * len(texts)
    return records


def test_one_log_of_several_datasets(running: Running, log: Path) -> None:
    """Read while the server runs, as soon as the last client has its last token."""
    texts = [
        "word " * n for n in range(1, 21)
    ]  # prompts of 6 to 101 tokens: several over one step's budget
    first = send(running, "001", texts)
    second = send(running, "002-r2", ["abcdef", "gh" * 100], input_len=64)
    third = send(running, "003", ["abcdef", "gh" * 100], input_len=(7, 30))
    running.post(prompt="no label", max_tokens=3, ignore_eos=True)
    found = gatelog.read(log)

    assert [record.prompt_tokens for record in first] == [5 * n + 1 for n in range(1, 21)]
    assert [record.prompt_tokens for record in second] == [64, 64]
    assert [record.prompt_tokens for record in third] == [7, 30]
    totals = {label: int(tokens.sum()) for label, tokens in found.segments.items()}
    assert totals == {
        "001": sum(
            5 * n + 1 + 10 - 1 for n in range(1, 21)
        ),  # the last token of each is drawn and not run
        "002-r2": 2 * (64 + 10 - 1),
        "003": 7 + 30 + 2 * (10 - 1),
        "": len(encode("no label")) + 3 - 1,
    }
    columns = found.columns
    assert (
        int(columns["prefill_tokens"].sum())
        == sum(5 * n + 1 for n in range(1, 21)) + 2 * 64 + 7 + 30 + 9
    )
    assert (columns["tokens"] == columns["prefill_tokens"] + columns["decode_tokens"]).all()
    assert (columns["tokens"] == sum(found.segments.values())).all()
    assert columns["tokens"].max() == MAX_TOKENS
    assert columns["requests"].max() == MAX_NUM_SEQS
    assert columns["index"].tolist() == list(range(len(found.tokens)))
    assert (columns["start_ns"][1:] >= (columns["start_ns"] + columns["duration_ns"])[:-1]).all()
    assert found.loads.shape == (len(found.tokens), SHAPE.layers, SHAPE.experts)
    assert (found.loads.sum(axis=2) == SHAPE.top_k * found.tokens[:, None]).all()
    assert (
        found.loads.max(axis=(1, 2)).tolist() <= found.tokens.tolist()
    )  # an expert gets a token once at most
    assert (found.top_k, found.placement, found.lost) == (SHAPE.top_k, (0, 0, 0, 0, 1, 1, 1, 1), "")

    running.process.terminate()
    assert running.end()[0] == 0
    totals = json.loads(log.with_name(log.name + ".json").read_text())
    assert totals == {
        "closed": True,
        "steps": len(found.tokens),
        "tokens": int(found.tokens.sum()),
        "violations": 0,
    }


def test_loads_are_what_the_plain_forward_pass_routes(running: Running, log: Path) -> None:
    send(running, "001", ["Why?"])
    weights = checkpoint.read(checkpoint.FOLDER, SHAPE)
    tokens = greedy(SHAPE, weights, encode("Why?"), 9)  # the tenth is drawn and not run
    reference = forward(SHAPE, weights, tokens)
    found = gatelog.read(log)
    assert found.loads[0].tolist() == reference.counts(0, 5, SHAPE.experts)
    assert found.loads.sum(axis=0).tolist() == reference.counts(0, len(tokens), SHAPE.experts)


def test_a_log_that_exists_is_never_written_to(tmp_path: Path) -> None:
    log = tmp_path / "kept.gatelog"
    log.write_bytes(b"precious")
    with (
        pytest.raises(AssertionError, match="exists; name a new file"),
        server("--gate-log", log),
    ):
        pass
    assert log.read_bytes() == b"precious"
