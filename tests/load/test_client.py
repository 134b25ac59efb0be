from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.truth import Truth

from core.errors import LoadError
from core.load import client, metrics
from core.load.client import Load
from core.load.record import KERNEL_STAMPS, Progress, Records, RequestRecord
from core.load.trust import trust
from core.workload.dataset import Prompt


def load(truth: Truth, count: int = 4, **fields: Any) -> Load:
    prompts = tuple(Prompt(f"p{i}", f"prompt {i}") for i in range(count))
    defaults: dict[str, Any] = {"output_len": 8, "prompts": prompts, "workers": 1}
    return Load(truth.url, "truth", "001", **{**defaults, **fields})


def run(wanted: Load, **callbacks: Any) -> Records:
    return asyncio.run(asyncio.wait_for(client.run(wanted, **callbacks), 60))


def alphabet(tokens: int, per_event: int = 1) -> str:
    """What the truth server says: a, b, c …"""
    return "".join(chr(97 + i % 26) * per_event for i in range(tokens // per_event))


def workers_of(pid: int) -> list[psutil.Process]:
    return [
        p for p in psutil.Process(pid).children(recursive=True) if "core.load.worker" in p.cmdline()
    ]


# --- what comes back ---


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
@pytest.mark.parametrize("split", [0, 7], ids=["whole sends", "7 bytes a send"])
def test_every_prompt_once_in_order_with_every_token(truth: Truth, chat: bool, split: int) -> None:
    truth.control(split=split, role_early=True)
    records = run(load(truth, 5, chat=chat))
    assert [r.prompt_id for r in records] == ["p0", "p1", "p2", "p3", "p4"]
    assert [r.error for r in records] == [""] * 5
    assert [r.text for r in records] == [alphabet(8)] * 5
    assert [(r.output_tokens, r.output_tokens_from, r.prompt_tokens) for r in records] == [
        (8, "usage", 8)
    ] * 5
    assert {i: row["prompt_head"] for i, row in truth.rows().items()} == {
        f"seg.001.{i}": f"prompt {i}" for i in range(5)
    }


def test_times_are_in_order_and_hold_what_the_server_knows(truth: Truth) -> None:
    truth.control(ttft_ms=30.0, itl_ms=5.0)
    records, rows = run(load(truth, 3)), truth.rows()
    for record in records:
        row = rows[f"seg.001.{record.index}"]
        assert record.t_due_ns <= record.t_start_ns <= record.t_sent_ns <= record.t_first_byte_ns
        assert (
            record.t_first_byte_ns
            <= record.stamps_ns[0]
            <= record.stamps_ns[-1]
            <= record.t_done_ns
        )
        assert record.t_sent_ns <= row["t_request"]
        # The clock is the server's too. The wall clock's offset is known to a few µs; leave it 1
        # ms.
        assert all(
            at >= sent - 1_000_000 for at, sent in zip(record.stamps_ns, row["t_send"], strict=True)
        )
    health = trust(records.workers, metrics.summarise(records))
    if sys.platform == "linux":
        assert health.stamps == KERNEL_STAMPS
    assert health.connections == 3


def test_times_of_tokens_that_only_the_final_usage_counts_are_unknown(truth: Truth) -> None:
    truth.control(per_event=4, itl_ms=8.0)
    record = run(load(truth, 1, output_len=12))[0]
    assert (tuple(record.event_tokens), record.output_tokens, record.text) == (
        (1, 1, 1),
        12,
        alphabet(12, 4),
    )
    assert (record.tpot_s, record.itls_s, record.e2e_s, record.visible_tokens) == (
        None,
        [],
        None,
        None,
    )
    figures = metrics.summarise([record])
    assert (figures.output_throughput, figures.request_throughput) == (None, None)
    assert figures.tpot_ms_reason == "of 1 answers, 1 has more tokens than events showed"


def test_without_usage_the_server_s_tokenizer_counts_else_the_events_do(truth: Truth) -> None:
    record = run(load(truth, 1, extra_body={"stream_options": None}))[0]
    assert (record.error, record.output_tokens, record.output_tokens_from) == ("", 8, "events")


def test_cuts_failures_and_silence_are_told_and_the_rest_goes_on(truth: Truth) -> None:
    truth.control(cut_every=3)
    errors = [r.error for r in run(load(truth, 3, max_concurrency=1))]
    assert errors[:2] == ["", ""]
    assert errors[2].startswith("stream cut: ")
    truth.control(cut_every=0, fail_every=2)
    errors = [r.error for r in run(load(truth, 2, max_concurrency=1))]
    assert errors[0] == ""
    assert errors[1].startswith('HTTP 500: {"error":{"message":"made to fail"')
    truth.control(fail_every=0, stall_every=2)
    records = run(load(truth, 2, max_concurrency=1, stall_timeout_s=0.3))
    assert [r.error for r in records] == ["", "stalled: no token for 0.3 s"]
    assert records[1].text == alphabet(4)  # what came before is kept


def test_an_answer_that_turns_out_wrong_is_not_waited_for() -> None:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {oops\n\n")
        await reader.read()
        writer.close()

    async def scenario() -> Records:
        server = await asyncio.start_server(one, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server:
            return await client.run(
                Load(f"http://{host}:{port}", "m", "007", [Prompt("a", "text")])
            )

    records = asyncio.run(asyncio.wait_for(scenario(), 30))
    assert records[0].error.startswith("not the expected JSON: ")


def test_no_server_is_an_error_of_each_request(truth: Truth) -> None:
    gone = Truth()
    gone.stop()
    records = run(replace(load(truth, 2), base_url=gone.url))
    assert all(r.error.startswith("ConnectError: ") for r in records)


def test_headers_key_and_extra_fields_reach_the_server() -> None:
    got: list[bytes] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(
            int(line[15:])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        got.extend([head, await reader.readexactly(size)])
        writer.write(b"HTTP/1.1 400 Bad\r\ncontent-length: 3\r\n\r\nno!")

    async def scenario() -> Records:
        server = await asyncio.start_server(one, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server:
            wanted = Load(
                f"http://{host}:{port}",
                "m",
                "007",
                [Prompt("a", "text")],
                api_key="secret",
                headers=(("X-Team", "blue"),),
                extra_body={"top_k": 5, "ignore_eos": None},
            )
            return await client.run(wanted)

    records = asyncio.run(scenario())
    assert records[0].error == "HTTP 400: no!"
    assert b"authorization: bearer secret\r\n" in got[0].lower()
    assert b"x-team: blue\r\n" in got[0].lower()
    assert b"x-request-id: seg.007.0\r\n" in got[0].lower()
    assert b'"top_k":5' in got[1]
    assert b"ignore_eos" not in got[1]


# --- when they are sent ---


def test_a_fixed_concurrency_is_never_passed_and_a_request_is_due_when_a_slot_is_free(
    truth: Truth,
) -> None:
    truth.control(ttft_ms=20.0)
    records = run(load(truth, 9, max_concurrency=3))
    ends = sorted(r.t_done_ns for r in records)
    for record in records:
        others = [r for r in records if r.t_start_ns <= record.t_start_ns < r.t_done_ns]
        assert len(others) <= 3
    assert sorted(r.t_due_ns for r in records)[3:] == ends[:6]


def test_at_a_rate_waiting_for_a_slot_counts_from_the_due_time(truth: Truth) -> None:
    truth.control(ttft_ms=40.0)
    records = run(load(truth, 4, request_rate=1000.0, arrival="constant", max_concurrency=1))
    due = [r.t_due_ns - records[0].t_due_ns for r in records]
    assert due == [0, 1_000_000, 2_000_000, 3_000_000]
    figures = metrics.summarise(records)
    assert figures.max_ttft_from_due_ms is not None
    assert figures.max_ttft_ms is not None
    assert figures.max_ttft_from_due_ms > 3 * 40 > figures.max_ttft_ms


def test_a_trace_is_replayed_in_its_order_and_told_in_the_dataset_s(truth: Truth) -> None:
    stamps = (5.03, 5.0, 5.015)
    prompts = tuple(Prompt(f"p{i}", f"prompt {i}", timestamp=at) for i, at in enumerate(stamps))
    records = run(load(truth, prompts=prompts, arrival="trace"))
    first = min(r.t_due_ns for r in records)
    assert [round((r.t_due_ns - first) / 1e6) for r in records] == [30, 0, 15]
    assert [r.prompt_id for r in records] == ["p0", "p1", "p2"]
    with pytest.raises(LoadError, match='needs a "timestamp"'):
        run(load(truth, arrival="trace"))


def test_several_workers_share_one_load(truth: Truth) -> None:
    records = run(load(truth, 11, workers=3, max_concurrency=5))
    assert [r.index for r in records] == list(range(11))
    assert [r.error for r in records] == [""] * 11
    assert len(records.workers) == 3


def test_a_thousand_streams_at_once(truth: Truth) -> None:
    truth.control(ttft_ms=1000.0)
    records = run(load(truth, 1000, output_len=2))
    assert {r.error for r in records} == {""}
    assert max(r.t_sent_ns for r in records) < min(
        r.stamps_ns[0] for r in records
    )  # all were open together


# --- while it runs ---


def test_each_request_is_told_as_it_ends_and_progress_meanwhile(truth: Truth) -> None:
    truth.control(itl_ms=20.0)
    told: list[RequestRecord] = []
    progress: list[Progress] = []
    records = run(load(truth, 3, output_len=80), on_done=told.append, on_progress=progress.append)
    assert sorted(told, key=lambda r: r.index) == records
    last = progress[-1].reported()
    assert last == Progress(sent=3, first_tokens=3, output_tokens=240, done=3, errors=0)
    assert any(p.done == 0 and 0 < p.output_tokens < 240 for p in progress)


def test_what_arrives_is_reported_while_requests_run(truth: Truth) -> None:
    """Each TTFT once, in the report after the first token; gaps as the records have them."""
    truth.control(itl_ms=20.0)
    progress: list[Progress] = []
    sent = load(truth, 12, output_len=150, workers=2)
    records = run(sent, on_progress=progress.append)
    ttfts = sorted(ns for p in progress for ns in p.ttfts_ns)
    assert ttfts == sorted(round(r.ttft_s * 1e9) for r in records)
    before_an_end = [p for p in progress if not p.done]
    assert sum(len(p.ttfts_ns) for p in before_an_end) == 12
    assert sum(len(p.gaps_ns) for p in before_an_end) > 12
    gaps = Counter(ns for p in progress for ns in p.gaps_ns)
    assert gaps <= Counter(round(gap * 1e9) for r in records for gap in r.itls_s)


def test_the_first_token_and_the_first_gap_are_reported_at_once(truth: Truth) -> None:
    """Not a second later, when both would be in one report."""
    truth.control(itl_ms=400.0)
    progress: list[Progress] = []
    run(load(truth, 4, output_len=3, workers=2), on_progress=progress.append)
    first, second = [p for p in progress if p.first_tokens][:2]
    assert (bool(first.ttfts_ns), first.gaps_ns) == (True, ())
    assert second.gaps_ns


def test_progress_counts_what_was_sent_not_what_is_to_come(truth: Truth) -> None:
    progress: list[Progress] = []
    run(load(truth, 12, request_rate=4.0), on_progress=progress.append)
    assert any(0 < p.sent < 12 for p in progress)
    assert all(p.done <= p.first_tokens <= p.sent for p in progress)
    assert progress[-1].sent == progress[-1].done == 12


def test_requests_that_found_no_server_are_not_in_flight(truth: Truth) -> None:
    progress: list[Progress] = []
    gone = replace(load(truth, 3), base_url="http://127.0.0.1:1")
    run(gone, on_progress=progress.append)
    assert progress[-1] == Progress(sent=3, errors=3)


def test_cancellation_ends_workers_and_sockets_and_tells_what_there_was(truth: Truth) -> None:
    truth.control(itl_ms=20.0)
    told: list[RequestRecord] = []

    async def scenario() -> None:
        moving = asyncio.Event()

        def look(progress: Progress) -> None:
            if progress.first_tokens == 2:
                moving.set()

        task = asyncio.ensure_future(client.run(load(truth, 2, output_len=5000), told.append, look))
        await moving.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert workers_of(os.getpid()) == []
    assert [r.error for r in told] == ["cancelled: the load was stopped"] * 2
    assert all(len(r.text) == len(r.stamps_ns) > 0 for r in told)
    assert all(row["end"] == "gone" for row in truth.rows().values())


def test_what_a_callback_raises_ends_the_load(truth: Truth) -> None:
    truth.control(ttft_ms=60_000.0)

    def fail(progress: Progress) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        run(load(truth, 4, workers=2), on_progress=fail)
    assert workers_of(os.getpid()) == []


def test_a_worker_that_falls_is_told(truth: Truth) -> None:
    truth.control(itl_ms=20.0)

    def kill(progress: Progress) -> None:
        for worker in workers_of(os.getpid()):
            worker.kill()

    records = run(load(truth, 2, output_len=5000), on_progress=kill)
    assert [r.error for r in records] == ["load worker ended: exit code -9"] * 2


def test_workers_die_with_their_parent(truth: Truth, tmp_path: Path) -> None:
    truth.control(itl_ms=20.0)
    script = (
        "import asyncio\nfrom core.workload.dataset import Prompt\nfrom core.load import client\n"
        f"load = client.Load({truth.url!r}, 'truth', '001', [Prompt('a', 'a')], output_len=5000)\n"
        "asyncio.run(client.run(load, on_progress=lambda p: print(p.sent, flush=True)))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    while parent.stdout.readline() != b"1\n":
        pass
    workers = workers_of(parent.pid)
    assert len(workers) == 1
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert (gone, alive) == (workers, [])


def test_a_worker_starts_lean() -> None:
    heavy = ("numpy", "click", "rich", "textual")
    script = f"import sys, core.load.worker; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
        == "[]\n"
    )


def test_a_client_busy_with_something_else_moves_no_stamp(truth: Truth) -> None:
    """The worker is stopped for 30 ms in the middle of a stream; stamps that are its own stay where
    the bytes came."""
    if sys.platform != "linux":
        pytest.skip("kernel stamps are read on Linux only")
    truth.control(itl_ms=100.0)

    def stop(progress: Progress) -> None:
        for worker in workers_of(os.getpid()):
            worker.suspend()
            time.sleep(0.06)  # at most one token comes meanwhile
            worker.resume()

    record = run(load(truth, 1, output_len=25), on_progress=stop)[0]
    sent = truth.rows()["seg.001.0"]["t_send"]
    late = sorted(at - t for at, t in zip(record.stamps_ns, sent, strict=True))
    assert late[len(late) // 2] < 5_000_000
    assert record.events_per_read == [1] * 25
