"""Commands to an engine: the socket, its replies, and what each command does to a real run on the
built-in engine."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import msgspec
import pytest
from support.place import Place
from support.watched import Watched

from core.engine import detached
from core.errors import FileError, GatescopeError
from core.experiment import control, events
from core.experiment.control import (
    Add,
    Cancel,
    Command,
    ControlError,
    Move,
    Retry,
    Stop,
    StopServer,
)
from core.experiment.invocation import Invocation
from core.rundir import result
from core.rundir.directory import RunDirectory


def test_commands_change_the_queue_and_what_runs(engine: Watched) -> None:
    def send(command: Command) -> None:
        control.send(engine.run_dir, command)

    engine.until(lambda s: s.live is not None)
    send(Move(["baseline/003"], before="baseline/002"))
    send(Add(["002"], ["all2all"]))
    with pytest.raises(ControlError, match=r"no such dataset; there are 3, from 001 to 003"):
        send(Add(["099"], []))
    with pytest.raises(ControlError, match="there is no run nix"):
        send(Cancel(["nix"]))
    with pytest.raises(ControlError, match=r"baseline/003 is still to come: nothing to retry"):
        send(Retry(["baseline/003"]))

    send(Cancel(["baseline/001"]))
    reordered = engine.until(lambda s: s.live and s.live.run == "baseline/003")
    assert list(reordered.runs) == [
        *("baseline/001", "baseline/003", "baseline/002"),
        *("all2all/001", "all2all/002", "all2all/003", "all2all/002-r2"),
    ]
    assert reordered.runs["baseline/001"].phase == "cancelled"
    with pytest.raises(ControlError, match="baseline/001 is cancelled already"):
        send(Cancel(["baseline/001"]))

    send(StopServer("baseline"))
    moved_on = engine.until(lambda s: s.live and s.live.run == "all2all/001")
    assert moved_on.backends["baseline"].phase == "stopped"
    assert [p for i, p in engine.phases().items() if i.startswith("baseline")] == ["cancelled"] * 3
    with pytest.raises(ControlError, match="baseline has nothing to run"):
        send(StopServer("baseline"))

    send(Retry(["baseline/001"]))
    assert list(engine.until(lambda s: s.count("cancelled") == 2).runs)[-1] == "baseline/001"
    send(Stop())
    stopped = engine.until(lambda s: s.interrupted)
    assert (stopped.interrupted, stopped.runs["all2all/001"].phase) == ("stop", "queued")
    engine.wait()
    with pytest.raises(
        ControlError, match=r"no engine is running in .*; resume with: gatescope --resume "
    ):
        send(Stop())


def test_a_cancelled_run_keeps_the_requests_that_were_answered(engine: Watched) -> None:
    engine.until(lambda s: s.live and s.live.finished)
    control.send(engine.run_dir, Cancel(["baseline/001"]))
    ended = engine.until(lambda s: s.runs["baseline/001"].phase == "cancelled").runs["baseline/001"]
    results = engine.run_dir / "baseline" / "results_json"
    partial = result.read(results / "001.partial.json")
    assert 1 <= partial.completed < 4
    assert partial.output_lens == [200] * partial.completed
    log = partial.gate_log
    assert log is not None
    # Unless a sample came just then, the last step is that of an answer that is not kept.
    assert (partial.delivery_lag_ms is None) == (log.tokens_seen != log.tokens_due)
    assert ended.reason == f"{partial.completed} requests kept"
    assert not (results / "001.json").exists()
    assert result.read_all(results) == result.Found({}, {}, {})


def test_what_was_cancelled_is_run_on_resume_where_that_is_asked_for(tmp_path: Path) -> None:
    place = Place(tmp_path, output_len=100, max_concurrency=1)
    with place.running("--backend", "baseline") as batch:
        batch.until(events.RunStarted)
        control.send(place.made, Cancel(["baseline/002"]))
        assert batch.drain() == 1
    assert place.phases() == {"baseline/001": "done", "baseline/002": "cancelled"}

    plain = place.gatescope("--resume", "made")
    assert plain.returncode == 1
    assert "· 1 run stays cancelled; --retry-cancelled runs it too\n" in plain.stderr
    assert place.phases() == {"baseline/001": "done", "baseline/002": "cancelled"}

    asked = place.gatescope("--resume", "made", "--retry-cancelled")
    assert asked.returncode == 0, asked.stderr
    assert "· baseline/002 queued again\n" in asked.stderr
    assert place.phases() == {"baseline/001": "done", "baseline/002": "done"}
    assert place.gatescope("--retry-cancelled").returncode == 2


def test_an_engine_outlives_the_one_who_started_it_and_is_in_a_session_of_its_own(
    engine: Watched,
) -> None:
    assert os.getsid(engine.pid) == engine.pid != os.getsid(0)
    assert control.is_live(engine.run_dir)
    assert (engine.run_dir / detached.LOG).read_text().startswith("load-imbalance: 6 runs")


def test_a_start_that_fails_says_why_and_leaves_nothing(experiment: Path, tmp_path: Path) -> None:
    experiment.write_text(experiment.read_text().replace("output_len", "output_lenn"))
    with pytest.raises(
        GatescopeError, match=r"output_lenn: unknown key; did you mean 'output_len'\?"
    ):
        detached.start(Invocation(experiment, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob(".*.log"))


class TestSocket:
    def test_is_for_its_owner_only_and_goes_with_the_engine(self, tmp_path: Path) -> None:
        async def look() -> int:
            async with control.listening(tmp_path, lambda command: None):
                return stat.S_IMODE((tmp_path / control.SOCKET).stat().st_mode)

        assert asyncio.run(look()) == 0o600
        assert not (tmp_path / control.SOCKET).exists()

    def test_works_in_a_run_directory_with_a_long_path(self, tmp_path: Path) -> None:
        deep = tmp_path.joinpath(*["a-rather-long-name-for-a-folder"] * 5)
        deep.mkdir(parents=True)
        seen: list[Command] = []

        async def talk() -> None:
            async with control.listening(deep, seen.append):
                await asyncio.to_thread(control.send, deep, Cancel(["x"]))

        asyncio.run(talk())
        assert seen == [Cancel(["x"])]

    @pytest.mark.parametrize(
        "line",
        [b"", b"{}", b"[1]", b'{"type":"Fly"}', b'{"type":"Cancel","runs":[3]}', b"\xff\x00"],
    )
    def test_answers_what_is_not_a_command_with_an_error(self, line: bytes, tmp_path: Path) -> None:
        def refuse(command: Command) -> None:
            raise AssertionError(command)

        async def talk() -> bytes:
            async with control.listening(tmp_path, refuse):
                reader, writer = await asyncio.open_unix_connection(tmp_path / control.SOCKET)
                writer.write(line + b"\n")
                answer = await reader.readline()
                writer.close()
                return answer

        assert msgspec.json.decode(asyncio.run(talk()), type=control.Reply).error.startswith(
            "not a command: "
        )

    def test_drops_a_line_without_end(self, tmp_path: Path) -> None:
        async def talk() -> bytes:
            async with control.listening(tmp_path, lambda command: None):
                reader, writer = await asyncio.open_unix_connection(tmp_path / control.SOCKET)
                try:
                    for _ in range(3 * control.MAX_LINE_BYTES // 65536):
                        writer.write(b"x" * 65536)
                        await writer.drain()
                    return await reader.read()
                except ConnectionError:
                    return b""

        assert asyncio.run(talk()) == b""


def test_printed_commands_quote_a_path_with_a_blank(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "file").touch()
    with pytest.raises(FileError, match=rf"--resume '{tmp_path}/my run'$"):
        RunDirectory.create(folder)
    with pytest.raises(ControlError, match=rf"gatescope --resume '{tmp_path}/my run'$"):
        control.send(folder, Stop())
