"""Whatever a server sends, the client reads a bounded part, names what is wrong, and goes on with
the next request."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hostile import ASKED, ATTACKS, ESCAPES, Hostile

from core import cli
from core.load import client, metrics
from core.load.client import Load
from core.load.record import Records
from core.workload.dataset import Prompt

READ_AT_MOST = 12 << 20
"""An answer's 2 MiB, and what the kernel of either side holds."""


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    server = Hostile()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def records(hostile: Hostile) -> Records:
    """One load: every attack, and after each a request that is answered well."""
    prompts = [Prompt(name, name) for attack in ATTACKS for name in (attack, f"after {attack}")]
    load = Load(
        hostile.url,
        "m",
        "001",
        prompts,
        output_len=ASKED,
        max_concurrency=4,
        stall_timeout_s=3.0,
        workers=1,
    )
    return asyncio.run(asyncio.wait_for(client.run(load), 120))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_named_and_read_no_further_than_a_limit(
    name: str, records: Records, hostile: Hostile
) -> None:
    record = next(r for r in records if r.prompt_id == name)
    assert bool(record.error) == bool(ATTACKS[name].error), record.error
    assert record.error.startswith(ATTACKS[name].error), record.error
    assert len(record.error) <= 300
    assert len(record.text) < 3 << 20
    assert hostile.sent[name] < READ_AT_MOST


def test_requests_after_an_attack_are_answered(records: Records) -> None:
    after = [
        (r.error, r.text, r.output_tokens) for r in records if r.prompt_id.startswith("after ")
    ]
    assert after == [("", "abc", 3)] * len(ATTACKS)


def test_figures_are_made_of_good_answers_only(records: Records) -> None:
    figures = metrics.summarise(records)
    good = 2 * len(ATTACKS) - sum(bool(attack.error) for attack in ATTACKS.values())
    assert figures.completed == good
    assert sum(figures.errors_by_kind.values()) == len(records) - good
    assert figures.num_prompts == len(records)
    assert figures.total_output_tokens < 4 * good


def test_a_model_s_text_is_kept_as_it_is(records: Records) -> None:
    assert next(r for r in records if r.prompt_id == "escapes in a text").text == ESCAPES


def test_no_escape_sequence_of_a_server_reaches_the_terminal(
    hostile: Hostile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [name for name in ATTACKS if name.startswith(("escapes", "gzip"))]
    lines = [json.dumps({"id": name, "text": name}) for name in [*names, "good"]]
    (tmp_path / "001_0.5.jsonl").write_text("\n".join(lines))
    command = [
        "bench",
        str(tmp_path / "001_0.5.jsonl"),
        "--base-url",
        hostile.url,
        "--model",
        "m\x1b[31m",
    ]
    assert cli.main([*command, "--output-len", str(ASKED), "--result-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "2 of 6 requests" in said
    assert [c for c in said if not c.isprintable() and c != "\n"] == []
    result = json.loads((tmp_path / "001.json").read_text())
    assert result["generated_texts"][names.index("escapes in a text")] == ESCAPES
    assert cli.main([*command[:-2], "--header", "a: b"]) == 2  # no model is named at /v1/models
    assert [c for c in capsys.readouterr().err if not c.isprintable() and c != "\n"] == []


def test_a_server_that_resets_every_connection_fails_each_request() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
        )  # its connections take after it
        load = Load(
            f"http://127.0.0.1:{listener.getsockname()[1]}",
            "m",
            "001",
            [Prompt("a", "a")],
            stall_timeout_s=1.0,
        )

        async def scenario() -> Records:
            loop = asyncio.get_running_loop()
            loop.add_reader(listener, lambda: listener.accept()[0].close())
            return await client.run(load)

        records = asyncio.run(asyncio.wait_for(scenario(), 30))
    assert records[0].error.split(":")[0] in ("ConnectError", "ReadError")
