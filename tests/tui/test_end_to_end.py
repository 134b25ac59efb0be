"""A person's session under tmux over the built-in engine: start, detach, attach, cancel, stop;
nothing is left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.watched import edit

from core import cli

PATIENCE_S = 60.0
pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Terminal:
    """A tmux server of its own; one window of 140×45."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.socket = f"gatescope-test-{os.getpid()}"
        # A second session keeps the tmux server up while the first is closed and opened again.
        self.tmux("-f", "/dev/null", "new-session", "-d", "-s", "keep", "exec sleep 600")

    def tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self.socket, *words], capture_output=True, text=True, check=False
        )
        return done.stdout

    def open(
        self, *words: str, setting: str = "unset COLUMNS LINES", program: str = "-m core.cli"
    ) -> None:
        """Run gatescope in a new session; the shell behind it says how it ended."""
        command = " ".join([sys.executable, program, *words])
        root = Path(__file__).parents[2]
        own = f"PYTHONPATH={root} XDG_CONFIG_HOME={self.place}/config"
        where = f"cd {self.place} && {setting} && export {own}"
        script = f"{where} && {command}; echo ended $?; exec sleep 600"
        self.tmux("new-session", "-d", "-s", "t", "-x", "140", "-y", "45", f"sh -c '{script}'")

    def close(self) -> None:
        self.tmux("kill-session", "-t", "t")

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", "-t", "t", *keys)

    def back(self) -> None:
        """Leave a screen; an escape with a key right behind it would be alt and that key."""
        self.press("Escape")
        self.until(lambda t: "╭" in t and " ?  help " in t and "esc  back" not in t)

    @property
    def text(self) -> str:
        return self.tmux("capture-pane", "-p", "-t", "t")

    def until(self, holds: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while not holds(text := self.text):
            assert time.monotonic() < deadline, text
            time.sleep(0.1)  # a screen announces no change
        return text


@pytest.fixture
def terminal(experiment: Path) -> Iterator[Terminal]:
    edit(experiment, repeats=20, output_len=900)  # long enough runs for a hand on the keys
    made = Terminal(experiment.parent)
    yield made
    made.tmux("kill-server")
    for process in processes(made.place):
        process.kill()


def processes(place: Path) -> list[psutil.Process]:
    """Every gatescope process that runs in this place."""
    found = []
    for process in psutil.process_iter():
        try:
            if "core." in " ".join(process.cmdline()) and process.cwd().startswith(str(place)):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_session(terminal: Terminal) -> None:
    terminal.open("--out", "run")
    terminal.until(lambda t: "not started" in t and "120 runs" in t)
    terminal.press("r")
    terminal.until(lambda t: "running in run" in t)
    shown = terminal.until(
        lambda t: any(
            line.strip("│ ").startswith("TTFT ") and "." in line for line in t.splitlines()
        )
    )
    assert "baseline · 00" in shown

    terminal.press("q")
    terminal.until(lambda t: "stop everything" in t)
    terminal.press("d")
    terminal.until(lambda t: "ended 0" in t)
    terminal.close()
    assert processes(terminal.place)  # the engine and its server go on

    terminal.open("attach", "run")
    terminal.until(lambda t: "▶ running" in t and "▶>" in t)
    terminal.press("x")
    terminal.until(lambda t: "esc  back" in t)
    terminal.press("x")
    terminal.until(lambda t: "cancelled" in t and "× " in t)

    terminal.press("q")
    terminal.until(lambda t: "stop everything" in t)
    terminal.press("k")
    terminal.until(lambda t: "ended 0" in t)
    deadline = time.monotonic() + PATIENCE_S
    while left := processes(terminal.place):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)  # a server may take a moment to go


def test_from_the_first_token_to_past_runs(terminal: Terminal) -> None:
    """Start, live figures before a request has ended, findings, past runs, two of them compared;
    the config in an editor."""
    edit(terminal.place / "experiments.toml", repeats=1, output_len=600)
    for unused in ("002_0.5.jsonl", "003_0.5.jsonl"):
        (terminal.place / unused).unlink()
    setting = 'unset COLUMNS LINES VISUAL && export EDITOR="sed -i s/600/800/"'
    terminal.open("--out", "runs/one", "--backend", "baseline", setting=setting)
    terminal.until(lambda t: "not started" in t and "1 run" in t)
    terminal.press("C")
    terminal.until(lambda t: "no mistakes; 1 run: baseline 1" in t)
    terminal.press("E")
    terminal.until(lambda t: "no mistakes" in t and "output_len = 800" in t)
    terminal.back()
    terminal.press("r")
    shown = re.compile(
        r"of 3,200 tokens.* (\d) of 4 requests.*TTFT +(\d) .*ITL +\d+ +[\d.]+", re.DOTALL
    )
    terminal.until(lambda t: any(ended < began for ended, began in shown.findall(t)))
    seen_ns = time.perf_counter_ns()
    terminal.until(lambda t: "✓ finished" in t)
    (stamps,) = (terminal.place / "runs/one").glob("baseline/requests/*.npz")
    with np.load(stamps) as requests:
        late_s = (seen_ns - requests["t_first_ns"].min()) / 1e9
    assert 0 < late_s < 10.0  # how soon: bench/tui/run.py
    terminal.press("c")
    terminal.until(lambda t: "Findings" in t and "validity:" in t)
    terminal.back()
    shutil.copytree(terminal.place / "runs/one", terminal.place / "runs/two")
    terminal.press("b")
    terminal.until(lambda t: t.count("1 of 1 done") >= 2 and "TPOT ms: baseline" in t)
    terminal.press("Space", "j", "Space")
    terminal.until(lambda t: t.count("[x]") == 2)
    terminal.press("c")
    terminal.until(lambda t: "two against" in t or "one against" in t)
    terminal.until(lambda t: re.search(r"mean TPOT, ms: (\S+) → \1  \+0\.0 %", t) is not None)
    terminal.press("q")
    terminal.until(lambda t: "mark two" in t)
    terminal.back()
    terminal.press("q")
    ended = terminal.until(lambda t: "ended 0" in t)
    assert "runs/one: 1 of 1 run done; write the report with: gatescope report runs/one" in ended


def test_a_lost_terminal_leaves_the_run_going(terminal: Terminal) -> None:
    """And gatescope without a word more finds it."""
    terminal.open()
    terminal.until(lambda t: "not started" in t)
    terminal.press("r")
    terminal.until(lambda t: "running in runs/" in t)
    terminal.close()  # SIGHUP
    terminal.open()
    terminal.until(lambda t: "▶ running" in t)
    terminal.press("q")
    terminal.until(lambda t: "stop everything" in t)
    terminal.press("k")
    terminal.until(lambda t: "ended 0" in t)


def test_columns_and_lines_of_a_parent_are_not_this_terminals(terminal: Terminal) -> None:
    terminal.open(setting="export COLUMNS=300 LINES=9")
    shown = terminal.until(lambda t: "not started" in t and "120 runs" in t and "6 Events" in t)
    lines = shown.splitlines()
    assert len(lines) == 45
    assert max(map(len, lines)) == 140
    assert any(line.startswith("╰") and line.rstrip().endswith("╯") for line in lines)


def test_ctrl_z_suspends_and_fg_goes_on(terminal: Terminal) -> None:
    terminal.open()
    terminal.until(lambda t: "not started" in t)
    (screen,) = [p for p in processes(terminal.place) if "core.cli" in p.cmdline()]
    terminal.press("C-z")
    deadline = time.monotonic() + PATIENCE_S
    while screen.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline, terminal.text
        time.sleep(0.05)
    screen.send_signal(signal.SIGCONT)
    terminal.press("q")
    terminal.until(lambda t: "ended 0" in t or "stop everything" in t)


def test_a_dumb_terminal_is_refused_in_a_line(terminal: Terminal) -> None:
    terminal.open(setting="export TERM=dumb")
    shown = terminal.until(lambda t: "ended" in t)
    assert "gatescope: TERM is dumb, and the terminal UI moves the cursor: set TERM, or" in shown
    assert "ended 2" in shown


def test_a_crash_of_the_screen_is_no_success(terminal: Terminal) -> None:
    (terminal.place / "crash.py").write_text(
        "import sys\nfrom core import cli\nfrom tui.app import Gatescope\n"
        "def crash(self): raise ZeroDivisionError('of the test')\n"
        "Gatescope.show = crash\nsys.exit(cli.main([]))\n"
    )
    terminal.open(program="crash.py")
    shown = terminal.until(lambda t: "ended" in t)
    assert "of the test" in shown
    assert "ended 1" in shown


def test_a_directory_that_cannot_be_written_is_a_line(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(experiment.parent)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert cli.main(["--out", "deep/run"]) == 2
    assert capsys.readouterr().err == (
        f"gatescope: deep/run: cannot be written: {experiment.parent} is read-only for you; name"
        " another place with --out, or look at a run with: gatescope attach RUN_DIR\n"
    )
