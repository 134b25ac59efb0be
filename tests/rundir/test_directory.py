"""The run directory: who may write it, and that what is in it is whole, whatever stopped the
writer."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.about import about
from support.vocabulary import any_event

from core import files
from core.errors import FileError
from core.experiment import events
from core.experiment.plan import Run
from core.load.metrics import RequestRecord
from core.rundir import about as run_json
from core.rundir import directory as store
from core.rundir import journal
from core.rundir.about import ServerNote
from core.rundir.directory import RunDirectory
from core.rundir.journal import Journal, read_events, stream_events
from core.rundir.result import Found, Result, done_runs, read_all

RUN = Run("baseline", "001", "001", "001.jsonl")
FIGURES = events.RunFigures(
    completed=1,
    failed=0,
    duration_s=1.0,
    output_throughput=1.0,
    latencies={},
    score=None,
    cv=None,
    aggregated_cv=None,
    excess_cv=None,
)


def finished(run: str, result: str) -> events.RunFinished:
    return events.RunFinished(at=1.0, run=run, figures=FIGURES, result=result)


class TestCreation:
    def test_makes_a_private_folder_with_its_parents(self, tmp_path: Path) -> None:
        path = tmp_path / "runs" / "a"
        with RunDirectory.create(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
            assert sorted(p.name for p in path.iterdir()) == [".lock", "events.jsonl"]

    def test_takes_an_empty_folder_and_no_other(self, tmp_path: Path) -> None:
        with RunDirectory.create(tmp_path):
            pass
        with pytest.raises(FileError, match=r"--out must be new or empty; .* use: --resume "):
            RunDirectory.create(tmp_path)

    def test_refuses_a_name_that_json_cannot_hold(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match=r"expected a path in UTF-8; rename it$"):
            RunDirectory.create(tmp_path / os.fsdecode(b"\xff"))

    def test_says_why_it_cannot(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(FileError, match=r"file: cannot be written: File exists$"):
            RunDirectory.create(tmp_path / "file")
        with pytest.raises(FileError, match=r"x: cannot be written: Not a directory$"):
            RunDirectory.create(tmp_path / "file" / "x")

    def test_only_a_run_directory_is_reopened(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "none"):
            with pytest.raises(
                FileError, match=r"not a run directory: run\.json and events\.jsonl are expected"
            ):
                RunDirectory.reopen(path)
        assert not list(tmp_path.iterdir())

    def test_a_new_path_is_free(self, tmp_path: Path) -> None:
        paths = []
        for _ in range(3):
            paths.append(store.new_path("load", tmp_path))
            paths[-1].mkdir()
        assert all(p.name.startswith("load-20") for p in paths)
        assert len(set(paths)) == 3


class TestLock:
    def test_keeps_a_second_gatescope_out_and_names_the_first(self, tmp_path: Path) -> None:
        with RunDirectory.create(tmp_path) as first:
            first.write_json("run.json", {})
            with pytest.raises(
                FileError, match=f"in use by another gatescope, process {os.getpid()}; wait for it"
            ):
                RunDirectory.reopen(tmp_path)
            first.append(events.BackendStopped(backend="a"))
        with RunDirectory.reopen(tmp_path):
            assert len(read_events(tmp_path)) == 1


class TestJournal:
    def test_goes_on_after_a_torn_line(self, tmp_path: Path) -> None:
        told = [events.BackendStopped(backend=name) for name in "abc"]
        with RunDirectory.create(tmp_path) as directory:
            directory.write_json("run.json", {})
            directory.append(told[0])
            directory.append(told[1])
        file = tmp_path / "events.jsonl"
        file.write_bytes(file.read_bytes()[:-5])
        assert read_events(tmp_path) == told[:1]
        with RunDirectory.reopen(tmp_path) as directory:
            directory.append(told[2])
        assert read_events(tmp_path) == [told[0], told[2]]

    @pytest.mark.parametrize("torn", [b'{"event":"BackendStopp', b"\xff\x00"])
    def test_that_is_nothing_but_a_torn_line_is_empty(self, tmp_path: Path, torn: bytes) -> None:
        (tmp_path / "run.json").write_text("{}")
        (tmp_path / "events.jsonl").write_bytes(torn)
        assert read_events(tmp_path) == []
        with RunDirectory.reopen(tmp_path):
            assert (tmp_path / "events.jsonl").read_bytes() == b""

    @pytest.mark.parametrize(
        "line", [b"{}", b"", b"\xff", b'{"event":"Future"}', b'{"event":"RunFailed","run":"\xff"}']
    )
    def test_names_a_line_that_is_no_event(self, tmp_path: Path, line: bytes) -> None:
        good = events.encode(events.BackendStopped(backend="a"))
        (tmp_path / "events.jsonl").write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
        with pytest.raises(FileError, match=r"events\.jsonl:2: not an event: ") as caught:
            read_events(tmp_path)
        assert len(str(caught.value).splitlines()) == 1

    def test_of_any_size_is_read_in_parts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = [events.BackendStopped(backend="x" * size) for size in (1, 300, 5, 90, 900, 2)]
        (tmp_path / "events.jsonl").write_bytes(
            b"".join(events.encode(e) + b"\n" for e in told) + b'{"torn' * 90
        )
        (tmp_path / "run.json").write_text("{}")
        for size in (50, 100, 1000):
            monkeypatch.setattr(journal, "PART_BYTES", size)
            assert len(Journal(tmp_path).poll()) < len(told)
            assert list(stream_events(tmp_path)) == told
        monkeypatch.setattr(store, "TAIL_BYTES", 100)
        with RunDirectory.reopen(tmp_path):
            assert (tmp_path / "events.jsonl").read_bytes().endswith(b"}\n")
        assert read_events(tmp_path) == told

    def test_that_is_missing_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(
            FileError, match=r"events\.jsonl: cannot be read: No such file or directory$"
        ):
            read_events(tmp_path)

    @settings(max_examples=50)
    @given(told=st.lists(any_event, max_size=4), cuts=st.lists(st.floats(0, 1), max_size=4))
    def test_is_followed_as_it_grows(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        told: list[events.AnyEvent],
        cuts: list[float],
    ) -> None:
        folder = tmp_path_factory.mktemp("journal")
        whole = b"".join(events.encode(e) + b"\n" for e in told)
        reader, seen = Journal(folder), []
        for cut in [*sorted(cuts), 1.0]:
            (folder / "events.jsonl").write_bytes(whole[: int(len(whole) * cut)])
            seen += reader.poll()
        assert seen == told
        assert reader.poll() == []


class TestFiles:
    def test_are_replaced_whole(self, tmp_path: Path) -> None:
        file = tmp_path / "new" / "summary.csv"
        files.write_whole(file, b"first, and long")
        with open(file, "rb") as reader:  # who reads meanwhile has the old one, all of it
            files.write_whole(file, b"second")
            assert reader.read() == b"first, and long"
        assert file.read_bytes() == b"second"
        assert [p.name for p in file.parent.iterdir()] == ["summary.csv"]

    def test_json_is_indented_and_ends_its_last_line(self, tmp_path: Path) -> None:
        with RunDirectory.create(tmp_path) as directory:
            written = directory.write_json(
                "a/b.json", {"path": Path("x"), "numbers": [1, 2.5, None]}
            )
        assert (
            written.read_bytes()
            == b'{\n "path": "x",\n "numbers": [\n  1,\n  2.5,\n  null\n ]\n}\n'
        )

    def test_a_result_lies_under_its_backend_and_label(self, tmp_path: Path) -> None:
        with RunDirectory.create(tmp_path) as directory:
            taken = Result(completed=3, mean_tpot_ms=1.5, itls=[[0.1, 0.2]])
            assert directory.write_result(RUN, taken) == "baseline/results_json/001.json"
        assert read_all(tmp_path / "baseline" / "results_json") == Found({"001": taken}, {}, {})

    def test_results_are_those_of_labels_in_order(self, tmp_path: Path) -> None:
        for name in ("010", "002-r2", "002", "1000", "1", "002.partial", "notes", "٠٠١"):
            (tmp_path / f"{name}.json").write_text("{}")
        assert list(read_all(tmp_path)[0]) == ["002", "002-r2", "010", "1000"]

    @pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"a": "\xff"}', b"[" * 100_000])
    def test_json_that_is_no_object_is_refused_in_one_line(
        self, tmp_path: Path, data: bytes
    ) -> None:
        (tmp_path / "run.json").write_bytes(data)
        with pytest.raises(FileError, match=r"run\.json: not ") as caught:
            run_json.read(tmp_path)
        assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize("data", [b"{}", b'{"config": 3}', b'{"config": {"path": 3}}'])
    def test_a_run_json_that_does_not_say_what_was_run_is_refused(
        self, tmp_path: Path, data: bytes
    ) -> None:
        (tmp_path / "run.json").write_bytes(data)
        with pytest.raises(FileError, match=r"run\.json: not as gatescope writes it: "):
            run_json.read(tmp_path)

    def test_what_a_server_ran_joins_run_json(self, tmp_path: Path) -> None:
        one, other = ServerNote(ran={"tp": "4"}), ServerNote(ran={"dp": "4"}, mismatches=["x"])
        with RunDirectory.create(tmp_path) as directory:
            directory.write_json("run.json", about())
            directory.note_server("baseline", one)
            directory.note_server("all2all", other)
        assert run_json.read(tmp_path) == about(servers={"baseline": one, "all2all": other})

    def test_every_server_start_logs_into_a_folder_of_its_own(self, tmp_path: Path) -> None:
        with RunDirectory.create(tmp_path) as directory:
            names = []
            for _ in range(3):
                folder = directory.gate_logs("baseline")
                folder.mkdir(parents=True)
                assert directory.gate_logs("baseline") == folder  # until something is logged
                (folder / "dp0_pp0.gatelog").touch()
                names.append(folder.name)
        assert names == ["gate_logs", "gate_logs-start2", "gate_logs-start3"]


class TestDoneRuns:
    def test_are_those_that_journal_and_result_agree_on(self, tmp_path: Path) -> None:
        with RunDirectory.create(tmp_path) as directory:
            for label in ("001", "002", "003", "004"):
                directory.append(
                    finished(f"baseline/{label}", f"baseline/results_json/{label}.json")
                )
            directory.append(events.RunFailed(run="baseline/005", reason="no"))
            directory.write_json("baseline/results_json/001.json", {"completed": 1})
            directory.write_json("baseline/results_json/005.json", {"completed": 1})
        (tmp_path / "baseline/results_json/002.json").write_bytes(b'{"completed": ')
        (tmp_path / "baseline/results_json/003.json").write_bytes(b'{"engine": "\xff"}')
        assert done_runs(tmp_path) == {"baseline/001"}


def test_the_stamps_of_every_request_are_kept(tmp_path: Path) -> None:
    times = {"t_due_ns": 1, "t_start_ns": 2, "t_sent_ns": 3, "t_done_ns": 9}
    good = {
        "stamps_ns": (5, 7, 8),
        "event_tokens": (1, 2, 1),
        "prompt_tokens": 11,
        "output_tokens": 4,
        "visible_tokens": 3,
    }
    records = [
        RequestRecord(index=0, prompt_id="a", **times, **good),  # type: ignore[arg-type]  # ** has one type
        RequestRecord(index=1, prompt_id="b", **times, error="HTTP 400"),  # type: ignore[arg-type]  # ** has one type
    ]
    with RunDirectory.create(tmp_path) as directory:
        directory.write_requests(RUN, records)
    assert [p.name for p in (tmp_path / "baseline" / "requests").iterdir()] == ["001.npz"]
    kept = np.load(tmp_path / "baseline" / "requests" / "001.npz")
    expected = {
        **{name: [value, value] for name, value in times.items()},
        "t_first_ns": [5, 0],
        "prompt_tokens": [11, -1],  # not counted
        "visible_tokens": [3, -1],
        "output_tokens": [4, 0],
        "ok": [True, False],
        "events": [3, 0],
        "stamps_ns": [5, 7, 8],
        "event_tokens": [1, 2, 1],
    }
    assert {name: kept[name].tolist() for name in expected} == expected
