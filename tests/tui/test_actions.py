"""Every key does what the help says. CHECKS has one check per action; an action without one
fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.staged import RECORDED, Played, Screen, shown, stage

from core.experiment import control, events
from core.experiment.control import Add, Cancel, Move, Retry, StopServer
from core.plots import labels
from tui.actions import ACTIONS, BY_NAME, PANES, why_not
from tui.model import session as sessions
from tui.screens.choice import Choice
from tui.screens.config import ConfigScreen
from tui.screens.dose import DoseScreen
from tui.screens.help import Help, keys
from tui.screens.log import ServerScreen
from tui.screens.past import PastRuns
from tui.screens.picker import Picker
from tui.screens.reading import Reading
from tui.widgets.happenings import Events
from tui.widgets.imbalance import Imbalance
from tui.widgets.plots import Plots
from tui.widgets.queue import Queue

Check = Callable[[Screen, Played], Awaitable[None]]
CHECKS: dict[str, tuple[str, Check]] = {}


def check(action: str, of: str = "running") -> Callable[[Check], Check]:
    def note(function: Check) -> Check:
        CHECKS[action] = (of, function)
        return function

    return note


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_action_has_a_check() -> None:
    assert set(CHECKS) == {a.name for a in ACTIONS}


@pytest.mark.parametrize("name", [a.name for a in ACTIONS])
def test_key_does_what_the_help_says(name: str) -> None:
    of, function = CHECKS[name]
    session = stage(Path(), of)

    async def try_it() -> None:
        async with shown(session) as screen:
            await function(screen, session)

    asyncio.run(try_it())


# --- the engine ---


@check("run", "stopped")
async def _run(screen: Screen, session: Played) -> None:
    await screen.press("r")
    await screen.app.workers.wait_for_complete()
    assert session.started == 1


@check("cancel")
async def _cancel(screen: Screen, session: Played) -> None:
    await screen.press("x")
    assert isinstance(screen.app.screen, Choice)
    await screen.press("enter")  # the harmless answer is the default
    assert not session.sent
    await screen.press("x")
    await screen.press("x")
    await screen.until(lambda: session.sent == [Cancel(["all2all/002"])])


@check("next")
async def _next(screen: Screen, session: Played) -> None:
    await screen.press("n")
    await screen.press("escape")
    assert not session.sent
    await screen.press("n")
    await screen.press("x")
    await screen.until(lambda: session.sent == [Cancel(["all2all/002"])])


@check("retry", "cancelled")
async def _retry(screen: Screen, session: Played) -> None:
    await screen.press("R")
    await screen.until(lambda: session.sent == [Retry(["baseline/002"])])


def test_retry_starts_an_engine_that_has_ended(tmp_path: Path) -> None:
    """What was cancelled stays cancelled under `r`: this is the way to have it after all."""
    session = stage(tmp_path, "cancelled")
    session.live = False

    async def try_it() -> None:
        async with shown(session) as screen:
            await screen.press("R")
            await screen.until(lambda: session.started == 1)

    asyncio.run(try_it())
    assert session.retried
    assert not session.sent


@check("add")
async def _add(screen: Screen, session: Played) -> None:
    await screen.press("a")
    await screen.until(lambda: isinstance(screen.app.screen, Picker))
    assert "[ ] 002  0.5000  002_0.5.jsonl" in screen.text
    await screen.press("down", "space", "down", "space", "enter")
    await screen.until(lambda: isinstance(screen.app.screen, Choice))
    await screen.press("e")
    await screen.until(lambda: session.sent == [Add(["002", "003"], ["baseline", "all2all"])])


def test_the_picker_filters(tmp_path: Path) -> None:
    session = stage(tmp_path, "running")

    async def try_it() -> None:
        async with shown(session) as screen:
            await screen.press("a")
            await screen.until(lambda: isinstance(screen.app.screen, Picker))
            await screen.press(*"003")
            assert "002_0.5" not in screen.text
            await screen.press("enter")
            await screen.until(lambda: isinstance(screen.app.screen, Choice))
            await screen.press("e")
            await screen.until(lambda: session.sent == [Add(["003"], ["baseline", "all2all"])])

    asyncio.run(try_it())


@pytest.mark.parametrize(("key", "beside"), [("b", True), ("e", False)])
def test_adding_what_would_change_servers_more_often_asks(
    tmp_path: Path, key: str, beside: bool
) -> None:
    """In "first" a run of baseline is in progress and one of each backend waits."""
    session = stage(tmp_path, "first")

    async def try_it() -> None:
        async with shown(session) as screen:
            await screen.press("a")
            await screen.until(lambda: isinstance(screen.app.screen, Picker))
            await screen.press("enter")
            await screen.until(lambda: isinstance(screen.app.screen, Choice))
            assert "At the end of the queue these runs change the server 3 times." in screen.text
            assert "next to the runs of the same server: the server changes once" in screen.text
            await screen.press(key)
            wanted = [Add(["001"], ["baseline", "all2all"], beside=beside)]
            await screen.until(lambda: session.sent == wanted)

    asyncio.run(try_it())


@check("stop_server")
async def _stop_server(screen: Screen, session: Played) -> None:
    await screen.press("s")
    await screen.until(lambda: isinstance(screen.app.screen, Choice))
    assert "This cancels 1 run: all2all/002" in screen.text
    await screen.press("s")
    await screen.until(lambda: session.sent == [StopServer("all2all")])


@check("later", "first")
async def _later(screen: Screen, session: Played) -> None:
    await screen.press("1", "down", "J")
    await screen.until(lambda: session.sent == [Move(["baseline/002"], "all2all/002")])


@check("sooner", "first")
async def _sooner(screen: Screen, session: Played) -> None:
    await screen.press("1", "end", "K")
    await screen.until(lambda: session.sent == [Move(["all2all/002"], "all2all/001")])


@check("quit")
async def _quit(screen: Screen, session: Played) -> None:
    await screen.press("q")
    await screen.until(lambda: isinstance(screen.app.screen, Choice))
    for word in ("back", "detach", "stop everything"):
        assert word in screen.text
    await screen.press("enter")
    assert screen.app.is_running
    assert not session.sent
    await screen.press("q")
    await screen.until(lambda: isinstance(screen.app.screen, Choice))
    await screen.press("d")
    await screen.until(lambda: screen.app.return_value == 0)
    assert not session.sent


# --- the display ---


@check("pause")
async def _pause(screen: Screen, session: Played) -> None:
    await screen.press("space")
    assert "display frozen" in screen.text
    before = screen.app.view
    screen.app.tick()
    assert screen.app.view is before
    await screen.press("space")
    assert not screen.app.paused


@check("slower")
async def _slower(screen: Screen, session: Played) -> None:
    await screen.press("<")
    assert " 1 Hz" in screen.text
    await screen.press("<", "<")
    assert screen.app.settings.hz == 0.5


@check("faster")
async def _faster(screen: Screen, session: Played) -> None:
    await screen.press(">", ">")
    assert screen.app.settings.hz == 4.0


@check("filter")
async def _filter(screen: Screen, session: Played) -> None:
    await screen.press("1", "/", *"all2all", "enter")
    queue = screen.app.query_one(Queue)
    assert [r.run.id for r in queue.rows()] == ["all2all/001", "all2all/002"]
    assert queue.has_focus
    await screen.press("6", "/", *"ready", "enter")
    assert all("ready" in h.text for h in screen.app.query_one(Events).rows())


@check("back")
async def _back(screen: Screen, session: Played) -> None:
    await screen.press("1", "/", "z", "z")
    assert "No run matches 'zz'" in screen.text
    await screen.press("escape")
    assert screen.app.query_one(Queue).count() == 4
    await screen.press("home")
    assert screen.app.view.pinned
    await screen.press("escape")
    assert not screen.app.view.pinned


@check("theme")
async def _theme(screen: Screen, session: Played) -> None:
    seen = []
    for _ in range(3):
        await screen.press("t")
        seen.append(screen.app.theme)
    assert seen == ["light", "terminal", "dark"]


@check("taller")
async def _taller(screen: Screen, session: Played) -> None:
    queue, live = screen.app.pane("Queue"), screen.app.pane("Live")
    before = queue.size.height, live.size.height
    await screen.press("1", "]", "]")
    await screen.until(lambda: queue.size.height >= before[0] + 3)
    assert live.size.height < before[1]


@check("shorter")
async def _shorter(screen: Screen, session: Played) -> None:
    queue = screen.app.pane("Queue")
    before = queue.size.height
    await screen.press("1", "[")
    await screen.until(lambda: queue.size.height < before)


@check("maximise")
async def _maximise(screen: Screen, session: Played) -> None:
    await screen.press("4", "+")
    shown = [pane.NAME for pane in screen.app.panes if pane.is_on_screen]
    assert shown == ["Imbalance"]
    await screen.press("+")
    assert all(pane.is_on_screen for pane in screen.app.panes)


@check("palette")
async def _palette(screen: Screen, session: Played) -> None:
    await screen.press(":")
    await screen.press(*"worst")
    await screen.until(lambda: "worst first" in screen.text)
    await screen.press("enter")
    await screen.until(lambda: screen.app.query_one(Imbalance).worst_first)


@check("help")
async def _help(screen: Screen, session: Played) -> None:
    await screen.press("?")
    assert isinstance(screen.app.screen, Help)
    assert BY_NAME["run"].help in screen.text
    await screen.press("escape")
    assert not isinstance(screen.app.screen, Help)


@check("next_pane")
async def _next_pane(screen: Screen, session: Played) -> None:
    await screen.press("1", "tab", "tab")
    assert screen.app.active.NAME == "Servers"


@check("previous_pane")
async def _previous_pane(screen: Screen, session: Played) -> None:
    await screen.press("1", "shift+tab")
    assert screen.app.active.NAME == "Events"


def _goes_to(number: int, pane: str) -> None:
    @check(f"pane_{number}")
    async def _go(screen: Screen, session: Played) -> None:
        await screen.press("2" if number == 1 else "1", str(number))
        assert pane == screen.app.active.NAME
        assert screen.app.active.has_focus


for _number, _pane in enumerate(PANES, 1):
    _goes_to(_number, _pane)


# --- panes ---


@check("mark", "first")
async def _mark(screen: Screen, session: Played) -> None:
    await screen.press("1", "end", "m", "up", "m")
    assert screen.app.query_one(Queue).marked == {"all2all/001", "all2all/002"}
    await screen.press("x")
    await screen.until(
        lambda: session.sent == [Cancel(["all2all/001", "all2all/002"])]
    )  # queued ones: no question


@check("order", "finished")
async def _order(screen: Screen, session: Played) -> None:
    queue = screen.app.query_one(Queue)
    await screen.press("o", "o", "o")
    assert queue.order == "TTFT ms"
    assert [r.run.id for r in queue.rows()] == [
        "baseline/001",
        "baseline/002",
        "all2all/001",
        "all2all/002",
    ]
    await screen.press("o", "o", "o", "o", "o")
    assert queue.order == "queue"


@check("pairs", "finished")
async def _pairs(screen: Screen, session: Played) -> None:
    await screen.press("d")
    rows = [r.run.id for r in screen.app.query_one(Queue).rows()]
    assert rows == ["baseline/001", "all2all/001", "baseline/002", "all2all/002"]
    assert "-71%▼" in screen.text  # TTFT of all2all/001, 95.18 ms, against baseline's 328.4


@check("open", "finished")
async def _open(screen: Screen, session: Played) -> None:
    await screen.press("1", "home", "enter")
    assert isinstance(screen.app.screen, Reading)
    await screen.until(lambda: "dataset    001   datasets/001_0.7237.jsonl" in screen.text)
    assert "per-step CV 0.960, excess CV 0.577" in screen.text
    await screen.press("escape", "3", "enter")
    assert isinstance(screen.app.screen, ServerScreen)
    assert "core.builtin.server" in screen.text


@check("dose", "dosed")
async def _dose(screen: Screen, session: Played) -> None:
    await screen.press("D")
    assert isinstance(screen.app.screen, DoseScreen)
    await screen.until(lambda: "■ all2all, hot-rank  +0.4 [+0.39, +0.41] ms per 0.1" in screen.text)
    await screen.press("p", "i")
    assert "median decode step, ms ↑   recorded max/mean of load over EP ranks →" in screen.text
    await screen.press("v")
    assert "forced routing, hot-rank: all2all TPOT rises with imposed skew: +0.4" in screen.text
    await screen.press("v", "e")
    await screen.until(
        lambda: "wrote runs/demo/graphs/decode_step_ms-forced-rank.png" in screen.text
    )
    assert (Path("runs/demo/graphs/decode_step_ms-forced-rank.csv")).read_text().count(
        "\n"
    ) == 1 + 2 * 4 + 1
    await screen.press("escape")
    assert not isinstance(screen.app.screen, DoseScreen)


def test_without_forced_runs_it_says_how_to_make_some() -> None:
    async def try_it() -> None:
        async with shown(stage(Path(), "finished"), 80, 24) as screen:
            assert " D " not in screen.text
            await screen.press("D")
            assert not isinstance(screen.app.screen, DoseScreen)
            assert (
                "D forced routing: no forced run is done; to measure some: gatescope" in screen.text
            )

    asyncio.run(try_it())


@check("follow")
async def _follow(screen: Screen, session: Played) -> None:
    await screen.press("1", "home", "f")
    assert screen.app.view.shown == "all2all/002"


@check("window")
async def _window(screen: Screen, session: Played) -> None:
    await screen.press("w")
    await screen.settle()
    load = screen.app.view.load
    assert load is not None
    assert load.recent
    assert load.steps < 504
    assert "last " in screen.text


@check("worst_first")
async def _worst_first(screen: Screen, session: Played) -> None:
    await screen.press("O")
    assert [x.layer for x in screen.app.query_one(Imbalance).rows()] == [
        2,
        0,
        1,
        3,
    ]  # of the others, no excess is known


@check("by_run", "finished")
async def _by_run(screen: Screen, session: Played) -> None:
    await screen.press("v")
    for figure in ("aggregated", "0.960", "1.225"):
        assert figure in screen.text


@check("figure", "finished")
async def _figure(screen: Screen, session: Played) -> None:
    pane = screen.app.query_one(Plots)
    await screen.press("F")
    await screen.until(lambda: "Expert load by layer: baseline" in pane.plain)
    await screen.press("right")
    assert "Expert load by layer: all2all" in pane.plain
    await screen.press("e")
    await screen.until(lambda: (session.run_dir or Path()).joinpath("graphs/heatmap.png").is_file())
    for _ in range(len(labels.FIGURES) - 1):
        await screen.press("F")
    assert "mean TPOT" in pane.title()


@check("reverse", "finished")
async def _reverse(screen: Screen, session: Played) -> None:
    await screen.press("z")
    assert "press o to sort by a column" in screen.text
    await screen.press("1", "o", "o", "o")
    assert "▼TTFT ms" in screen.text
    await screen.press("z")
    assert "▲TTFT ms" in screen.text
    assert "sorted by TTFT ms · row" in screen.text
    assert screen.app.query_one(Queue).listed()[0] == "all2all/002"


@check("findings", "finished")
async def _findings(screen: Screen, session: Played) -> None:
    await screen.press("c")
    assert isinstance(screen.app.screen, Reading)
    await screen.until(lambda: "run.json" in screen.text)  # the recording has none


@check("copy", "finished")
async def _copy(screen: Screen, session: Played) -> None:
    await screen.press("1", "home", "y")
    path = Path("runs/demo/baseline/results_json/001.json").absolute()
    assert screen.app.clipboard == str(path)
    await screen.press("enter", "y")
    assert screen.app.clipboard == "runs/demo/baseline/results_json/001.json"


@check("browse", "finished")
async def _browse(screen: Screen, session: Played) -> None:
    stage(Path(), "failed")
    await screen.press("b")
    await screen.until(lambda: isinstance(screen.app.screen, PastRuns))
    assert "4 of 4 done" in screen.text
    assert "1 of 2 done, 1 failed" in screen.text
    assert "TPOT ms: baseline 70.68, all2all 17.05" in screen.text
    await screen.press("c")
    assert "Mark two with space" in screen.text
    await screen.press("home", "space", "end", "space", "c")
    assert isinstance(screen.app.screen, Reading)
    assert " demo against failed" in screen.text
    await screen.until(lambda: "run.json" in screen.text)  # the recordings have none
    await screen.press("escape")
    await screen.press("end", "enter")
    await screen.until(lambda: "runs/failed" in screen.text.splitlines()[0])
    assert screen.app.session.run_dir == Path("runs/failed")


@check("config")
async def _config(screen: Screen, session: Played) -> None:
    await screen.press("C")
    await screen.until(lambda: "experiments.toml: no such file" in screen.text)
    Path("001_0.5.jsonl").write_text('{"id": "a", "text": "hello"}\n')
    Path("experiments.toml").write_text(
        '[experiment]\nengine = "builtin"\ndatasets = "*.jsonl"\n'
        '[[backends]]\nname = "solo"\nport = 0\n'
    )
    assert isinstance(screen.app.screen, ConfigScreen)
    screen.app.screen.read_again()
    await screen.until(lambda: "✓ no mistakes; 1 run: solo 1" in screen.text)
    assert 'name = "solo"' in screen.text
    assert "keeps the config that it was started with" in screen.text


def test_an_unfinished_older_run_is_offered() -> None:
    stage(Path(), "stopped")
    assert sessions.newest_unfinished() == "runs/demo"
    stopped = Path("runs/demo/events.jsonl")
    stopped.write_bytes((RECORDED / "demo" / "events.jsonl").read_bytes())
    assert sessions.newest_unfinished() == ""


@check("mute")
async def _mute(screen: Screen, session: Played) -> None:
    await screen.press("B")
    assert not screen.app.settings.bell
    assert "the bell is off" in screen.text
    await screen.press("B")
    assert screen.app.settings.bell


@pytest.mark.parametrize(("muted", "rings"), [(False, ["demo stopped by SIGTERM"]), (True, [])])
def test_an_end_rings(muted: bool, rings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    session = stage(Path(), "running")
    rung: list[str] = []

    async def end() -> None:
        async with shown(session) as screen:
            if muted:
                await screen.press("B")
            monkeypatch.setattr(screen.app, "ring", rung.append)
            screen.app.tick()
            assert session.run_dir is not None
            with open(session.run_dir / "events.jsonl", "ab") as journal:
                stop = events.ExperimentInterrupted(by="SIGTERM")
                journal.write(events.encode(stop) + b"\n")
            screen.app.tick()
            screen.app.tick()

    asyncio.run(end())
    assert [news.partition(":")[0] for news in rung] == rings


@check("metric", "finished")
async def _metric(screen: Screen, session: Played) -> None:
    await screen.press("p")
    assert screen.app.query_one(Plots).metric == "mean_ttft_ms"
    assert "mean TTFT, ms" in screen.text


@check("axis", "finished")
async def _axis(screen: Screen, session: Played) -> None:
    await screen.press("i", "i", "i")
    assert screen.app.query_one(Plots).axis == "predicted"


@check("outliers", "finished")
async def _outliers(screen: Screen, session: Played) -> None:
    await screen.press("u")
    assert screen.app.query_one(Plots).hides_outliers
    assert "outliers hidden" in screen.text


@check("export", "finished")
async def _export(screen: Screen, session: Played) -> None:
    await screen.press("e")
    await screen.until(lambda: "wrote" in screen.text)
    written = Path("runs/demo/graphs/mean_tpot_ms-per-step.csv").read_text().splitlines()
    assert len(written) == 5
    assert Path("runs/demo/graphs/mean_tpot_ms-per-step.png").read_bytes().startswith(b"\x89PNG")


@check("log")
async def _log(screen: Screen, session: Played) -> None:
    await screen.press("l")
    await screen.until(lambda: "ready: http://127.0.0.1:8012" in screen.text)
    await screen.press("/", *"sigterm")
    assert "sigterm" in screen.text
    await screen.press("escape")
    assert isinstance(screen.app.screen, ServerScreen)
    assert "sigterm" not in screen.text
    await screen.press("escape")
    assert not isinstance(screen.app.screen, ServerScreen)


def test_a_log_is_scrolled_and_searched(tmp_path: Path) -> None:
    session = stage(Path(), "finished")
    log = session.run_dir / "all2all" / "server.log" if session.run_dir else tmp_path
    log.write_text("".join(f"line {number:03d}\n" for number in range(200)))

    async def read() -> None:
        async with shown(session, 80, 24) as screen:
            await screen.press("l")
            await screen.until(lambda: "line 199" in screen.text)
            await screen.press("g")
            assert "line 000" in screen.text
            await screen.press("pagedown", "j")
            assert "line 000" not in screen.text
            await screen.press("/", *"line 10", "enter")
            log = screen.app.screen
            assert isinstance(log, ServerScreen)

            def match() -> str:
                assert log.at is not None
                assert log.lines[log.at].text in screen.text
                return log.lines[log.at].text

            assert match() == "line 109"
            assert "'line 10': match 10 of 10" in screen.text
            await screen.press("N", "N")
            assert match() == "line 107"
            await screen.press("n")
            assert match() == "line 108"
            assert "match 9 of 10" in screen.text
            await screen.press("n", "n")
            assert match() == "line 100"  # round the end
            await screen.press("G")
            assert "line 199" in screen.text
            await screen.press("k")
            assert "line 199" not in screen.text
            await screen.press("j", "/", *"nowhere", "enter")
            assert "'nowhere': 0 matches" in screen.text
            await screen.press("q")
            assert not isinstance(screen.app.screen, ServerScreen)

    asyncio.run(read())


def test_a_log_is_filtered_by_severity_and_wrapped(tmp_path: Path) -> None:
    session = stage(Path(), "running")
    assert session.run_dir is not None
    log = session.run_dir / "all2all" / "server.log"
    log.write_text(
        "INFO all is well\nWARNING low memory\nERROR " + "x" * 100 + "tail\n  its second line\n"
        "torch.OutOfMemoryError: none left\nINFO done\n"
    )

    async def read() -> None:
        async with shown(session, 80, 24) as screen:
            await screen.press("l")
            await screen.until(lambda: "all is well" in screen.text)
            assert "all2all  ● ready" in screen.text
            assert "tail" not in screen.text
            await screen.press("w")
            assert "tail" in screen.text
            await screen.press("f")
            assert "4 lines · warnings and errors" in screen.text
            assert "INFO" not in screen.text
            await screen.press("f")
            assert "3 lines · errors only" in screen.text
            assert "its second line" in screen.text
            assert "low memory" not in screen.text
            session.live = False
            session.alive = False
            session.stage = "stopped"
            await screen.press("f")
            assert "all2all  ○ stopped" in screen.text

    asyncio.run(read())


# --- all of them ---


def test_help_lists_every_key_once() -> None:
    async def look() -> None:
        async with shown(stage(Path(), "finished")) as screen:
            listed = list(keys([*screen.app.BINDINGS]))
            suspend = "Suspend; the shell's fg goes on"  # Textual's own action
            assert [text for _, text in listed] == [*(a.help for a in ACTIONS), suspend]

    asyncio.run(look())


def test_disabled_key_says_why() -> None:
    async def look() -> None:
        async with shown(stage(Path(), "finished")) as screen:
            await screen.press("x")
            assert "x cancel: no engine is running; r starts it" in screen.text
            await screen.press("r")
            assert "r run: nothing is left to run" in screen.text
            assert (
                why_not(BY_NAME["stop_server"], screen.app.view)
                == "no engine is running; r starts it"
            )

    asyncio.run(look())


def test_nothing_running_quits_at_once() -> None:
    async def leave() -> None:
        async with shown(stage(Path(), "finished")) as screen:
            await screen.press("q")
            await screen.until(lambda: screen.app.return_value == 0)

    asyncio.run(leave())


def test_ctrl_c_asks_and_a_second_one_stops_everything() -> None:
    session = stage(Path(), "running")

    async def leave() -> None:
        async with shown(session) as screen:
            await screen.press("ctrl+c")
            await screen.until(lambda: isinstance(screen.app.screen, Choice))
            assert not session.sent
            await screen.press("ctrl+c")
            await screen.until(lambda: session.sent == [control.Stop()])
            session.live = False
            await screen.until(lambda: screen.app.return_value == 0)

    asyncio.run(leave())


def test_cursor_keys_move_the_cursor() -> None:
    async def move() -> None:
        async with shown(stage(Path(), "finished")) as screen:
            queue = screen.app.query_one(Queue)
            await screen.press("1", "home")
            for pressed, at in (
                ("down", 1),
                ("j", 2),
                ("up", 1),
                ("k", 0),
                ("end", 3),
                ("home", 0),
                ("G", 3),
                ("g", 0),
            ):
                await screen.press(pressed)
                assert queue.at == at, pressed
            await screen.press("pagedown")
            assert queue.at == 3
            await screen.press("5", "home", "right", "right", "left")
            assert screen.app.query_one(Plots).at == 1
            assert queue.at == 1  # one run is selected, in every pane
            assert screen.app.view.shown == "baseline/002"

    asyncio.run(move())
