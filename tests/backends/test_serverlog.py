from __future__ import annotations

from pathlib import Path

from core.backends import serverlog


def test_lines_of_an_earlier_start_are_not_taken(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("ValueError: of the start before\n")
    start = log.stat().st_size
    with open(log, "a") as more:
        more.write("OSError: of this start\n")
    assert (
        list(serverlog.lines(log, start))
        == serverlog.tail(log, start)
        == ["OSError: of this start"]
    )


def test_phases_are_told_once_as_the_log_grows(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(
        "INFO 11-24 13:00:00 [gpu_model_runner.py:3] Starting to load model tiny...\nLoading safet"
    )
    phases = serverlog.PhaseFollower(log)
    assert list(phases.read()) == ["loading weights"]
    with open(log, "a") as more:
        more.write("ensors checkpoint shards: 100%\n[backends.py:1] Start compiling function\n")
        more.write("Capturing CUDA graphs (decode, FULL):  50%|##\rCapturing CUDA gra")
    assert list(phases.read()) == ["compiling", "capturing graphs"]
    with open(log, "a") as more:
        more.write(
            "phs: 100%\nGraph capturing finished in 9 secs\ninit engine (profile, create kv cache) took 3 s\n"
        )
    assert list(phases.read()) == ["warming up", "starting the API server"]
    assert list(phases.read()) == []


def test_colours_line_ends_and_overwritten_progress_are_not_read(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(
        b"\x1b[1;36m(EngineCore pid=9)\x1b[0;0m \x1b[1mStarting to\x1b[m load model x\r\n"
        b"Loading:   0%|\rLoading:  50%|##\rLoading: 100%|####\n"
        b"\x1b]8;;http://x\x1b\\a link\x1b]8;;\x07\n"
    )
    assert serverlog.tail(log) == [
        "(EngineCore pid=9) Starting to load model x",
        "Loading: 100%|####",
        "a link",
    ]
    assert list(serverlog.PhaseFollower(log).read()) == ["loading weights"]
