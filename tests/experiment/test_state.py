"""The fold from events to what every view draws."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.vocabulary import any_event

from core.experiment import events, state
from core.experiment.events import AnyEvent, Latency, RunFigures
from core.experiment.plan import Run
from core.experiment.state import Snapshot

RUNS = [Run(b, d, d, f"{d}.jsonl") for b in ("baseline", "all2all") for d in ("001", "002")]
IDS = ["baseline/001", "baseline/002", "all2all/001", "all2all/002"]
TTFT = Latency(n=2, mean=10.0, p50=10.0, p90=11.0, p99=None, max=11.0)
FIGURES = RunFigures(
    completed=2,
    failed=0,
    duration_s=1.0,
    output_throughput=8.0,
    latencies={"ttft": TTFT},
    score=0.5,
    cv=0.4,
    aggregated_cv=0.1,
    excess_cv=None,
)


def started(at: float = 0.0) -> events.ExperimentStarted:
    return events.ExperimentStarted(at=at, name="load", engine="builtin (NumPy, CPU)", runs=RUNS)


def request(run: str, index: int, **values: Any) -> events.RequestFinished:
    given = {
        "input_tokens": 10,
        "output_tokens": 4,
        "ttft_ms": 5.0,
        "tpot_ms": 2.0,
        "itl_ms": 2.0,
        "e2e_ms": 11.0,
    }
    return events.RequestFinished(run=run, index=index, **{**given, **values})


def done(run: str, at: float) -> events.RunFinished:
    return events.RunFinished(at=at, run=run, figures=FIGURES, result=f"{run}.json")


def phases(snapshot: Snapshot) -> dict[str, str]:
    return {i: r.phase for i, r in snapshot.runs.items()}


class TestRuns:
    def test_are_queued_in_the_order_of_the_plan(self) -> None:
        snapshot = state.fold([started(at=7.0)])
        assert (snapshot.name, snapshot.engine, snapshot.started_at) == (
            "load",
            "builtin (NumPy, CPU)",
            7.0,
        )
        assert phases(snapshot) == dict.fromkeys(IDS, "queued")
        assert [r.run for r in snapshot.runs.values()] == RUNS

    def test_go_from_running_to_done_failed_or_cancelled(self) -> None:
        story: list[AnyEvent] = [
            started(),
            events.RunStarted(at=10.0, run=IDS[0], requests=2),
            done(IDS[0], at=14.0),
            events.RunStarted(at=15.0, run=IDS[1], requests=2),
            events.RunFailed(at=16.0, run=IDS[1], reason="no server"),
            events.RunStarted(at=17.0, run=IDS[2], requests=2),
            events.RunCancelled(at=18.0, run=IDS[2], completed=1),
        ]
        snapshot = state.fold(story)
        assert phases(snapshot) == dict(
            zip(IDS, ("done", "failed", "cancelled", "queued"), strict=True)
        )
        first = snapshot.runs[IDS[0]]
        assert (first.figures, first.result, first.score) == (FIGURES, "baseline/001.json", 0.5)
        assert (first.started_at, first.ended_at) == (10.0, 14.0)
        assert (snapshot.runs[IDS[1]].reason, snapshot.runs[IDS[2]].reason) == (
            "no server",
            "1 requests kept",
        )
        assert {
            p: snapshot.count(p) for p in ("queued", "running", "done", "failed", "cancelled")
        } == {
            "queued": 1,
            "running": 0,
            "done": 1,
            "failed": 1,
            "cancelled": 1,
        }

    def test_the_eta_is_the_mean_of_the_done_times_those_left(self) -> None:
        assert state.fold([started()]).eta_s() is None
        story: list[AnyEvent] = [started()]
        for run, begin, end in ((IDS[0], 0.0, 4.0), (IDS[1], 5.0, 7.0)):
            story += [events.RunStarted(at=begin, run=run, requests=1), done(run, at=end)]
        story.append(events.RunStarted(at=8.0, run=IDS[2], requests=1))
        assert state.fold(story).eta_s() == 6.0  # 3 s a run; one runs, one is queued

    def test_are_queued_again_added_and_reordered(self) -> None:
        more = Run("baseline", "001", "001-r2", "001.jsonl")
        story: list[AnyEvent] = [
            started(),
            events.ScoresPredicted(scores={"001": 0.7, "002": None, "009": 0.1}),
            events.RunStarted(run=IDS[0], requests=1),
            events.RunFailed(run=IDS[0], reason="no"),
            events.RunRequeued(run=IDS[0]),
            events.RunsAdded(runs=[more]),
            events.QueueReordered(runs=[IDS[3], IDS[1]]),
        ]
        snapshot = state.fold(story)
        assert list(snapshot.runs) == [IDS[2], IDS[0], more.id, IDS[3], IDS[1]]
        again = snapshot.runs[IDS[0]]
        assert (again.phase, again.reason, again.started_at, again.score) == (
            "queued",
            "",
            0.0,
            0.7,
        )
        assert [snapshot.runs[i].score for i in (IDS[1], IDS[2], more.id)] == [None, 0.7, 0.7]


class TestLive:
    def test_sums_the_requests_of_the_run_in_progress(self) -> None:
        story: list[AnyEvent] = [
            started(),
            events.RunStarted(run=IDS[0], requests=3),
            request(IDS[0], 1),
            request(IDS[0], 0, ttft_ms=7.0, tpot_ms=None, itl_ms=None, output_tokens=1),
            request("all2all/001", 0),
            request(
                IDS[0],
                2,
                error="stalled",
                ttft_ms=None,
                tpot_ms=None,
                itl_ms=None,
                e2e_ms=None,
                output_tokens=0,
            ),
        ]
        assert state.fold(story).live == state.Live(
            IDS[0],
            3,
            None,
            3,
            1,
            30,
            5,
            ttft_ms=(5.0, 7.0),
            tpot_ms=(2.0,),
            itl_ms=(2.0,),
            e2e_ms=(11.0, 11.0),
        )

    @pytest.mark.parametrize(
        "end",
        [
            done("baseline/001", at=2.0),
            events.RunFailed(run="baseline/001", reason="no"),
            events.RunCancelled(run="baseline/001"),
            events.ExperimentInterrupted(by="SIGINT"),
            events.ExperimentFinished(done=1, failed=0),
        ],
        ids=lambda event: type(event).__name__,
    )
    def test_ends_with_its_run(self, end: AnyEvent) -> None:
        assert state.fold([started(), events.RunStarted(run=IDS[0], requests=1), end]).live is None

    def test_outlives_the_end_of_another_run(self) -> None:
        story: list[AnyEvent] = [
            started(),
            events.RunStarted(run=IDS[0], requests=1),
            events.RunCancelled(run=IDS[1]),
        ]
        live = state.fold(story).live
        assert live is not None
        assert live.run == IDS[0]

    def test_keeps_ten_minutes_of_samples(self) -> None:
        samples = [
            events.Sampled(
                at=float(i),
                backend="baseline",
                run=IDS[0],
                sent=1,
                first_tokens=0,
                output_tokens=0,
                finished=0,
            )
            for i in range(630)
        ]
        assert state.fold([started(), *samples]).samples == tuple(samples[-600:])


class TestBackends:
    START = events.BackendStarting(
        at=1.0, backend="baseline", port=8000, pid=7, command=["serve", "-x"], log="a.log"
    )

    def test_tell_how_a_start_went(self) -> None:
        snapshot = state.fold(
            [
                started(),
                self.START,
                events.BackendPhase(at=2.0, backend="baseline", phase="compiling"),
            ]
        )
        backend = snapshot.backends["baseline"]
        assert (backend.phase, backend.step, backend.since) == ("starting", "compiling", 2.0)
        assert (backend.port, backend.pid, backend.command, backend.log) == (
            8000,
            7,
            ("serve", "-x"),
            "a.log",
        )
        ready = events.BackendReady(
            at=3.0, backend="baseline", seconds=2.0, ran={"tp": "4"}, mismatches=["kernel"]
        )
        backend = state.reduce(snapshot, ready).backends["baseline"]
        assert (backend.phase, backend.step, backend.ready_after_s) == ("ready", "", 2.0)
        assert (backend.ran, backend.mismatches, backend.command) == (
            {"tp": "4"},
            ("kernel",),
            ("serve", "-x"),
        )

    def test_stop_unless_they_failed(self) -> None:
        end: list[AnyEvent] = [
            events.BackendStopping(backend="baseline"),
            events.BackendStopped(backend="baseline"),
        ]
        stopping = state.fold([started(), self.START, end[0]])
        assert stopping.backends["baseline"].phase == "stopping"
        assert state.reduce(stopping, end[1]).backends["baseline"].phase == "stopped"
        failure = events.BackendFailed(
            backend="baseline", reason="exited with code 1", log_tail=["CUDA"]
        )
        backend = state.fold([started(), self.START, failure, *end]).backends["baseline"]
        assert (backend.phase, backend.reason, backend.log_tail) == (
            "failed",
            "exited with code 1",
            ("CUDA",),
        )


class TestExperiment:
    STORY: tuple[AnyEvent, ...] = (
        started(),
        TestBackends.START,
        events.ScoresPredicted(scores={"001": 0.7}),
        events.RunStarted(at=1.0, run=IDS[0], requests=1),
        done(IDS[0], at=2.0),
        events.RunFailed(run=IDS[1], reason="no"),
        events.RunCancelled(run=IDS[2]),
        events.RunStarted(at=3.0, run=IDS[3], requests=1),
    )

    def test_an_interruption_queues_the_running_run_again(self) -> None:
        snapshot = state.fold([*self.STORY, events.ExperimentInterrupted(at=9.0, by="SIGTERM")])
        assert phases(snapshot) == dict(
            zip(IDS, ("done", "failed", "cancelled", "queued"), strict=True)
        )
        assert (snapshot.interrupted, snapshot.ended_at, snapshot.finished) == (
            "SIGTERM",
            9.0,
            False,
        )

    @pytest.mark.parametrize(
        "last",
        [[], [events.ExperimentInterrupted(at=9.0, by="SIGTERM")]],
        ids=["killed", "stopped"],
    )
    def test_resuming_queues_all_but_the_done_and_the_cancelled(self, last: list[AnyEvent]) -> None:
        snapshot = state.fold([*self.STORY, *last, events.ExperimentResumed(missing=2)])
        assert phases(snapshot) == dict(
            zip(IDS, ("done", "queued", "cancelled", "queued"), strict=True)
        )
        assert snapshot.runs[IDS[0]].figures == FIGURES
        assert (snapshot.live, snapshot.backends, snapshot.interrupted, snapshot.ended_at) == (
            None,
            {},
            "",
            0.0,
        )

    def test_its_end_is_told(self) -> None:
        snapshot = state.fold(
            [*self.STORY, events.ExperimentFinished(at=9.0, done=1, failed=1, cancelled=2)]
        )
        assert (snapshot.finished, snapshot.ended_at) == (True, 9.0)


class TestAnyStory:
    @settings(max_examples=50)
    @given(story=st.lists(any_event, max_size=8))
    def test_folds_without_an_error_and_in_any_two_parts(self, story: list[AnyEvent]) -> None:
        whole = state.fold([started(), *story])
        cut = len(story) // 2
        assert state.fold(story[cut:], state.fold([started(), *story[:cut]])) == whole
        assert sum(
            whole.count(p) for p in ("queued", "running", "done", "failed", "cancelled")
        ) == len(whole.runs)
