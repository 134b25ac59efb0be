"""Text that comes from elsewhere cannot reach the terminal; text of ours fits its cells."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from support.staged import shown, stage

from core.experiment import events
from core.experiment.events import AnyEvent
from core.experiment.invocation import Invocation
from core.rundir import journal
from tui.draw import chart
from tui.draw.glyphs import STATES, ascii_only
from tui.draw.text import bar, clock, cut, fit, kept, number, safe

HOSTILE = {
    "\x1b[2J\x1b[H owned": " owned",
    "\x1b]0;title\x07after": "after",
    "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\": "link",
    "\x1bPq#0;2;0;0;0\x1b\\sixel": "sixel",
    "\x9b31mred\x9d0;t\x9c": "red",
    "a\rb\nc\td": "a b c d",
    "\u202eevil\u2066": "evil",
    "bell\x07 back\x08\x7f": "bell back",
    "cut off \x1b[": "cut off ",
    "\x1bc reset": " reset",
    "\x1b[?1049h\x1b[5;5Hx": "x",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_escape_sequences_are_stripped(text: str) -> None:
    assert safe(text) == HOSTILE[text]


@given(st.text())
def test_nothing_unprintable_is_left(text: str) -> None:
    assert safe(text).isprintable()


@given(st.text(), st.integers(0, 40))
def test_fit_is_as_wide_as_requested(text: str, width: int) -> None:
    assert cell_len(fit(text, width)) == width
    assert cell_len(fit(text, width, right=True)) == width


@given(st.text())
def test_ascii_is_ascii_and_as_long(text: str) -> None:
    assert ascii_only(text).isascii()
    assert len(ascii_only(text)) == len(text)


def test_states_can_be_told_apart_without_colour() -> None:
    assert all(word.strip() for word in STATES)
    assert all(cell_len(symbol) == 1 for symbol, _ in STATES.values())


def test_numbers_and_times() -> None:
    assert (number(3412.4), number(13.94, 1), number(None, 2)) == ("3,412", "13.9", "–")
    assert (clock(0), clock(187), clock(3787), clock(-1)) == ("00:00", "03:07", "1:03:07", "00:00")
    assert bar(0.5, 4) == "██░░"


def test_trends_have_their_scale_at_the_ends() -> None:
    assert chart.spark([0.0, None, 1.0, 2.0], 15, 1) == "0▕▁ ▄█ ▏2.0    "
    assert chart.spark([9.0, 1.0, 2.0, 1.0, 1.0, 2.0], 15, 0) == "0▕▄█▄▄█▏2      "  # the last five
    assert chart.spark([], 12, 0) == "0▕  ▏       "


def test_a_spike_does_not_flatten_the_rest() -> None:
    steady = [1.0] * 9
    assert chart.top([*steady, 50.0]) == 1.25
    assert chart.bars([1.0, 50.0], 1.25) == ["▆▲"]
    assert chart.top([*steady, 2.0]) == 2.0  # no spike
    assert chart.top([1.0, 50.0]) == 50.0  # too few to say
    assert chart.top([None]) == 0.0


def test_a_chart_shows_all_values_in_the_cells_there_are() -> None:
    assert chart.squeezed([1.0, 3.0, None, None, 5.0], 3) == [2.0, None, 5.0]
    title, *rows = chart.chart("x", [8.0, 4.0], 12, 3, 0, "")
    assert title.plain == "x           "
    assert [row.plain for row in rows] == ["      8┤█ ", "      0┤██"]


def test_long_names_are_cut_where_they_are_alike() -> None:
    assert cut("baseline-deepep-low-latency@2", 12) == "basel…ency@2"
    assert cut("baseline", 8) == "baseline"
    assert cut("abcdef", 2) == "a…"


def test_what_is_needed_least_goes_first() -> None:
    parts = [(9, ("name", "")), (2, ("path", "")), (5, ("eta", ""))]
    assert kept(parts, 11).plain == "namepatheta"
    assert kept(parts, 10).plain == "nameeta"
    assert kept(parts, 2).plain == "name"


def test_hostile_server_cannot_move_the_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reason, log lines, command and versions of a server that says what it likes; then its log
    itself."""
    monkeypatch.chdir(tmp_path)
    evil = "\x1b[2J\x1b]0;pwned\x07\x1b[31mEVIL\x9b1;1H\u202e"
    session = stage(Path(), "failed")
    assert session.run_dir is not None
    kept: list[AnyEvent] = [
        e for e in journal.read_events(session.run_dir) if not isinstance(e, events.BackendFailed)
    ]
    at = kept[-1].at
    kept += [
        events.BackendStarting(
            at=at, backend="all2all", port=1, pid=2, command=[evil], log=f"all2all/{evil}.log"
        ),
        events.BackendReady(
            at=at, backend="all2all", seconds=1.0, ran={evil: evil}, mismatches=[evil]
        ),
        events.BackendFailed(at=at, backend="all2all", reason=evil, log_tail=[evil]),
    ]
    (session.run_dir / "events.jsonl").write_bytes(b"".join(events.encode(e) + b"\n" for e in kept))

    async def look() -> list[str]:
        async with shown(session) as screen:
            seen = [screen.text]
            await screen.press("3", "down", "enter")
            await screen.press("escape")
            return [*seen, screen.text]

    for text in asyncio.run(look()):
        assert "EVIL" in text
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_no_terminal_is_refused_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    from tui import start

    assert start.run(Invocation()) == 2
    assert "gatescope --batch" in capsys.readouterr().err
