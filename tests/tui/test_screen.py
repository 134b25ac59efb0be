"""What the screen does by itself: sizes, redraws, problems, figures."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from rich.cells import cell_len
from support.staged import shown, stage

from core.analysis.cost_model import CostModel
from core.analysis.routing_cost import BackendCost, RoutingCost
from core.errors import ConfigError
from core.experiment import control, events, pace, state
from core.experiment.events import Gpu, Sampled, ServerLoad
from core.experiment.invocation import Invocation
from core.experiment.state import Live
from core.load.record import Lag
from core.load.trust import Trust
from core.routing.layers import LayerLoad
from core.stats.estimate import Estimate
from core.validity.problem import Problem, Validity
from tui.model import figures, session, trends
from tui.model.loads import Load
from tui.model.session import Session
from tui.model.view import View
from tui.screens.choice import Choice
from tui.screens.help import Help
from tui.widgets.happenings import Events
from tui.widgets.imbalance import Imbalance
from tui.widgets.lines import Lines
from tui.widgets.pane import Pane
from tui.widgets.queue import Queue
from tui.widgets.servers import gpus


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


SHOWN = {  # size → panes on screen
    (80, 24): 1,
    (240, 70): 6,
    (60, 15): 1,
    (100, 30): 5,
    (110, 40): 6,
    (140, 45): 6,
}


def test_resized_while_it_runs() -> None:
    async def resize() -> None:
        async with shown(stage(Path(), "running"), 140, 45) as screen:
            for size, panes in SHOWN.items():
                await screen.pilot.resize_terminal(*size)
                await screen.pilot.pause()
                screen.app.show()
                await screen.pilot.pause()
                rows = screen.text.splitlines()
                assert len(rows) == size[1]
                assert "Live" in screen.text
                on_screen = [pane for pane in screen.app.panes if pane.is_on_screen]
                assert len(on_screen) == panes, size

    asyncio.run(resize())


def test_only_changed_lines_are_repainted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def watch() -> None:
        async with shown(stage(Path(), "running")) as screen:
            repainted: list[int] = []
            refresh = Lines.refresh

            def noted(self: Lines, *regions: object, **how: object) -> Lines:
                repainted.append(len(regions))
                return refresh(self, *regions, **how)  # type: ignore[arg-type]  # ** has one type

            monkeypatch.setattr(Lines, "refresh", noted)
            screen.app.tick()
            assert repainted == []  # nothing happened, the clock stands: nothing is drawn
            screen.app.session.clock = lambda: screen.app.view.now + 1.0
            screen.app.tick()
            assert 0 < sum(repainted) <= 4  # the seconds in the header and in Live

    asyncio.run(watch())


def test_hidden_panes_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def watch() -> None:
        async with shown(stage(Path(), "running"), 80, 24) as screen:
            drawn: list[str] = []
            redraw = Pane.redraw

            def noted(self: Pane) -> None:
                drawn.append(self.NAME)
                redraw(self)

            monkeypatch.setattr(Pane, "redraw", noted)
            screen.app.tick()
            assert drawn == ["Live"]

    asyncio.run(watch())


def test_a_refused_command_is_said() -> None:
    played = stage(Path(), "running")

    def refuse(command: control.Command) -> None:
        raise control.ControlError("all2all/002 has just ended")

    played.send = refuse  # type: ignore[method-assign]

    async def ask() -> None:
        async with shown(played) as screen:
            await screen.press("x")
            await screen.press("x")
            await screen.until(lambda: "not done: all2all/002 has just ended" in screen.text)

    asyncio.run(ask())


def test_a_start_that_fails_is_said() -> None:
    played = stage(Path(), "stopped")

    def refuse(*, retry_cancelled: bool = False) -> Path:
        raise ConfigError("[[backends]] baseline, port: 8000 is not free")

    played.start = refuse  # type: ignore[method-assign]

    async def ask() -> None:
        async with shown(played) as screen:
            await screen.press("r")
            await screen.until(lambda: isinstance(screen.app.screen, Choice))
            assert "Not started" in screen.text
            assert "[[backends]] baseline, port: 8000 is not free" in screen.text
            assert "press r again" in screen.text
            await screen.press("enter")
            screen.app.tick()
            assert "! not started: [[backends]] baseline" in screen.app.query_one(Events).plain

    asyncio.run(ask())


def test_gpus_stand_beside_each_other_where_they_fit() -> None:
    found = [
        Gpu(
            index=i,
            memory_used_gib=128.4,
            memory_total_gib=141,
            utilisation_pct=88,
            power_w=640.2,
            temperature_c=74,
        )
        for i in range(2)
    ]
    assert gpus(found, 80) == [
        "gpu0 128/141 GiB  88% 640 W 74 °C  gpu1 128/141 GiB  88% 640 W 74 °C"
    ]
    assert len(gpus(found, 40)) == 2
    assert gpus([], 80) == []


def test_rates_are_of_one_run() -> None:
    load = ServerLoad(running=1, waiting=0, kv_cache=0.5, preemptions=0)
    samples = [
        Sampled(
            at=at,
            backend="b",
            run=run,
            sent=1,
            first_tokens=1,
            output_tokens=tokens,
            finished=0,
            server=load,
        )
        for at, run, tokens in (
            (0.0, "b/1", 0),
            (1.0, "b/1", 50),
            (3.0, "b/1", 250),
            (3.1, "b/1", 450),  # its end: no second, so no rate
            (4.0, "b/2", 10),
            (5.0, "b/2", 20),
        )
    ]
    early = replace(samples[1], at=1.4, output_tokens=60, early=True)
    kept = state.fold([*samples, early])
    assert (pace.newest(kept, "b/1"), pace.newest(kept, "b/2")) == (early, None)
    assert trends.rates(pace.of_run(kept, "b/1"), "output_tokens") == [50.0, 100.0]
    assert trends.rates(pace.of_run(kept, "b/2"), "output_tokens") == [10.0]


def test_tokens_due_and_the_time_they_take() -> None:
    """Of 4 requests of 50 tokens, one has ended after 20."""
    live = Live("b/1", 4, 50, finished=1, output_tokens=20)
    seen = [
        Sampled(at=at, backend="b", run="b/1", sent=3, first_tokens=3, output_tokens=n, finished=1)
        for at, n in ((0.0, 30), (1.0, 50), (2.0, 70))
    ]
    assert pace.tokens(live, seen[-1]) == (70, 170)
    assert pace.share(live, seen[-1]) == pytest.approx(70 / 170)
    assert pace.eta_s(live, seen) == pytest.approx(5.0)
    assert trends.in_flight(live, seen[-1]) == 2
    unlimited = replace(live, output_len=None)
    assert pace.tokens(unlimited, seen[-1]) == (70, None)
    assert pace.share(unlimited, seen[-1]) == 0.25
    assert pace.eta_s(unlimited, seen) is None
    assert pace.eta_s(live, seen[:1]) is None


def test_the_mouse_selects_rows_tabs_and_keys() -> None:
    async def click() -> None:
        async with shown(stage(Path(), "finished"), 80, 24) as screen:
            await screen.pilot.click(Queue, offset=(10, 3))  # under the border and the titles
            await screen.until(lambda: screen.app.view.shown == "baseline/002")
            await screen.pilot.click("#tabs", offset=(32, 0))
            assert screen.app.active.NAME == "Imbalance"
            help_at = screen.text.splitlines()[-1].index("help")
            await screen.pilot.click("#keys", offset=(help_at, 0))
            await screen.until(lambda: isinstance(screen.app.screen, Help))

    asyncio.run(click())


def test_other_panes_show_the_run_selected_in_plots() -> None:
    async def select() -> None:
        async with shown(stage(Path(), "finished")) as screen:
            await screen.press("5", "home", "right")
            assert screen.app.query_one(Queue).selected() == screen.app.view.run
            assert "baseline · 002 · done · selected" in screen.text
            await screen.settle()  # its gate log is read off the UI thread
            assert "baseline/002 · " in screen.app.query_one(Imbalance).title()

    asyncio.run(select())


def test_one_number_in_flight() -> None:
    async def look() -> None:
        async with shown(stage(Path(), "running"), 80, 24) as screen:
            rows = [row for row in screen.text.splitlines() if "in flight" in row]
            found = [n for row in rows for n in re.findall(r"in flight +(\d+)", row)]
            assert len(found) >= 2
            assert set(found) == {"9"}

    asyncio.run(look())


def test_percentiles_are_linear() -> None:
    found = figures.latency([4.0, 1.0, 3.0, 2.0])
    assert found is not None
    assert (found.n, found.mean, found.p50, found.max, found.p99) == (4, 2.5, 2.5, 4.0, None)
    assert found.p90 == pytest.approx(3.7)
    hundred = figures.latency([float(i) for i in range(101)])
    assert hundred is not None
    assert hundred.p99 == 99.0
    assert figures.latency([]) is None


def test_the_newest_engine_that_runs_is_found(tmp_path: Path) -> None:
    assert session.newest_live(tmp_path / "runs") is None
    dead = tmp_path / "runs" / "dead"
    dead.mkdir(parents=True)
    (dead / control.SOCKET).touch()
    assert session.newest_live(tmp_path / "runs") is None


def test_score_of_a_file_name() -> None:
    assert session.score_in("datasets/001_0.7237.jsonl") == 0.7237
    assert session.score_in("datasets/mine.jsonl") is None


def test_a_journal_that_breaks_is_said() -> None:
    played = stage(Path(), "running")

    async def breaks() -> None:
        async with shown(played) as screen:
            assert played.run_dir is not None
            with open(played.run_dir / "events.jsonl", "ab") as journal:
                journal.write(b"{not an event}\n")
            screen.app.tick()
            await screen.until(lambda: "not an event" in screen.text)

    asyncio.run(breaks())


def test_new_events_are_folded_in() -> None:
    played = stage(Path(), "running")

    async def grows() -> None:
        async with shown(played) as screen:
            assert played.run_dir is not None
            more = events.RunFailed(at=played.clock(), run="all2all/002", reason="the server died")
            with open(played.run_dir / "events.jsonl", "ab") as journal:
                journal.write(events.encode(more) + b"\n")
            screen.app.tick()
            await screen.until(lambda: "failed: the server died" in screen.text)

    asyncio.run(grows())


def test_a_run_directory_without_a_beginning(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").touch()
    opened = Session(Invocation(), tmp_path)
    opened.open()
    assert opened.stage == "failed"
    assert "its journal is empty" in opened.problem


def limited_client() -> Trust:
    lag = Lag(p50_ms=1.0, p99_ms=16.18, max_ms=20.0)
    return Trust(
        stamps="read",
        stamped_reads_share=None,
        shared_reads_share=None,
        loop_lag=lag,
        start_lag=lag,
        late_starts=0,
        workers=1,
        cpu_share=None,
        cpu_s=1.0,
        connections=1,
        retries=0,
        clock_steps=0,
        limited_by_client=True,
        warnings=("limited by the client",),
    )


def test_a_run_that_its_client_limited_says_so() -> None:
    played = stage(Path(), "finished")
    assert played.run_dir is not None
    result = played.run_dir / "all2all" / "results_json" / "002.json"
    result.parent.mkdir()
    result.write_bytes(msgspec.json.encode({"ttfts": [1], "client": limited_client()}))

    async def look() -> str:
        async with shown(played) as screen:
            return screen.text

    text = asyncio.run(look())
    assert "client lag p99 16.2 ms" in text
    assert "! client limits: limited by the client" in text
    places = {
        "window": ["all2all/001"],
        "drift over time": ["all2all"],
        "GPU clocks": ["baseline/gpu0"],
        "equal work": ["all2all/001", "all2all/002"],
    }
    problems = [
        Problem(
            severity="doubtful", where=where, sentence=f"{rule} does not hold", remedy="", rule=rule
        )
        for rule, where in places.items()
    ]
    found = {"validity": Validity(problems=problems, checked=list(places), unchecked=[])}
    (played.run_dir / "findings.json").write_bytes(msgspec.json.encode(found))
    text = asyncio.run(look())
    assert "! drift over time: drift over time does not hold" in text
    assert "! equal work: equal work does not hold" in text
    assert not any(
        rule in text
        for rule in ("window does not hold", "GPU clocks does not hold", "limited by the client")
    )


def test_what_is_invalid_and_what_routing_cost_are_on_the_panes() -> None:
    """By each result as its run ends, then by the findings of the whole."""
    played = stage(Path(), "finished")
    assert played.run_dir is not None
    folder = played.run_dir / "all2all" / "results_json"
    folder.mkdir()
    lost = {"gate_log": {"tokens_due": 90, "tokens_seen": 9}, "measured_imbalance": {}}
    (folder / "001.json").write_bytes(msgspec.json.encode(lost))
    model = CostModel(phase="decode", by="active")
    cost = RoutingCost(
        dataset="002",
        steps=9,
        over_fair=Estimate(1200.0, (1100.0, 1300.0)),
        share=Estimate(4.14, (3.8, 4.5)),
    )
    costs = [BackendCost(backend="all2all", model=model, datasets=[cost])]

    async def look(*keys: str) -> str:
        async with shown(played) as screen:
            await screen.press(*keys)
            await screen.settle()
            return screen.text

    assert "INVALID: recorded tokens (all2all/001)" in asyncio.run(look())
    problem = Problem(
        severity="invalid", where=["all2all"], sentence="it drifts", remedy="", rule="drift"
    )
    validity = Validity(problems=[problem], checked=["drift"], unchecked=[])
    found = msgspec.json.encode({"validity": validity, "routing_cost": costs})
    (played.run_dir / "findings.json").write_bytes(found)
    text = asyncio.run(look())
    assert "INVALID: drift (all2all)" in text
    assert "over a fair router, 002 costs +1.20 [+1.10, +1.30] ms a step, +4.1" in text
    text = asyncio.run(look("4", "v"))
    (row,) = [row for row in text.splitlines() if "all2all/002" in row and "+4.1" in row]
    (head,) = [row for row in text.splitlines() if "cost %" in row]
    assert row.index("+4.1") + 4 == head.index("cost %") + 6


def test_the_queue_keeps_the_run_in_progress_in_sight() -> None:
    played = stage(Path(), "running")

    async def look() -> None:
        async with shown(played) as screen:
            queue = screen.app.query_one(Queue)
            assert not queue.has_focus
            assert queue.selected() == played.snapshot.runs["all2all/002"]
            await screen.press("1", "home")
            screen.app.tick()
            assert queue.at == 0  # with the focus it stays where it was put

    asyncio.run(look())


@pytest.mark.parametrize("width", [40, 60, 78, 138, 198])
@pytest.mark.parametrize("experts", [4, 8, 64, 128, 256])
def test_the_heat_map_fits_whatever_the_model(width: int, experts: int) -> None:
    shares = tuple([2 / experts] + [(1 - 2 / experts) / (experts - 1)] * (experts - 1))
    layers = tuple(
        LayerLoad(
            layer=i, cv=0.5, floor=0.1, excess=0.4, reason="", rank=1.2, work=1.1, shares=shares
        )
        for i in range(60)
    )
    pane = Imbalance()
    pane.view = View(load=Load("a/001", 10, 100, layers))
    lines = pane.draw(width, 20)
    assert len(lines) == 20
    assert all(cell_len(line.plain) <= width for line in lines)
    assert "L00" in lines[1].plain
    assert "e0" in lines[0].plain


def test_the_work_of_the_busiest_rank_is_a_column_where_it_is_known() -> None:
    def drawn(work: float | None) -> list[str]:
        layer = LayerLoad(3, 0.5, 0.1, 0.4, "", 1.2, work, (0.25,) * 4)
        pane = Imbalance()
        pane.view = View(load=Load("a/001", 10, 100, (layer,)))
        return [line.plain for line in pane.draw(120, 20)]

    head, row, legend = drawn(1.234)[:3]
    assert head.split()[:6] == ["CV", "floor", "excess", "rank", "work", "hot"]
    assert row.split()[:7] == ["L03", "0.500", "0.100", "0.400", "1.20", "1.23", "e0"]
    assert "work: busiest rank's over fair" in legend
    assert not any("work" in line for line in drawn(None))
