"""The doors of `gatescope bench`: URLs, headers and keys, arguments, traces, files of results,
signals, and the limit of open files."""

from __future__ import annotations

import base64
import json
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.recording import Recording, Refusal

from core import cli, files
from core.commands import results

COMMAND = [sys.executable, "-m", "core.cli", "bench"]
Captured = pytest.CaptureFixture[str]


def written(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path / "007_a.jsonl", {"prompt": "one"}, {"prompt": "two"})


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def bench(data: Path, url: str, *flags: str) -> int:
    return cli.main(["bench", str(data), "--base-url", url, "--output-len", "3", *flags])


def refused(capsys: Captured, data: Path, url: str, *flags: str) -> str:
    """What is said where the command line is refused."""
    with pytest.raises(SystemExit, match="2"):
        bench(data, url, *flags)
    return capsys.readouterr().err


# --- URLs ---


@pytest.mark.parametrize(
    ("base", "completions", "models"),
    [
        ("", "/v1/completions", "/v1/models"),
        ("/", "/v1/completions", "/v1/models"),
        ("/v1/", "/v1/completions", "/v1/models"),
        ("/proxy", "/proxy/v1/completions", "/proxy/v1/models"),
        ("/api/v3", "/api/v3/completions", "/api/v3/models"),
        ("/v1beta/openai", "/v1beta/openai/completions", "/v1beta/openai/models"),
        ("/v1/completions", "/v1/completions", "/v1/models"),
        ("/v1/models", "/v1/completions", "/v1/models"),
        ("/x/completions?version=2", "/x/completions?version=2", "/x/models?version=2"),
        ("/v1?a=1&b=", "/v1/completions?a=1&b=", "/v1/models?a=1&b="),
    ],
)
def test_a_base_may_end_in_any_version_or_be_an_endpoint(
    base: str, completions: str, models: str, data: Path
) -> None:
    with Recording() as server:
        assert bench(data, f" {server.url}{base}") == 0
    assert [asked.path for asked in server.asked] == [models, completions, completions]


def test_the_endpoint_for_chats_goes_with_chat(data: Path, capsys: Captured) -> None:
    with Recording() as server:
        url = f"{server.url}/v1/chat/completions"
        assert bench(data, url, "--chat", "--model", "m") == 0
        assert bench(data, url, "--model", "m") == 2
        assert "ends in chat/completions; add --chat" in capsys.readouterr().err
        assert bench(data, f"{server.url}/v1/completions", "--model", "m", "--chat") == 2
        assert "ends in completions; leave --chat out" in capsys.readouterr().err
    assert [asked.path for asked in server.asked] == ["/v1/chat/completions"] * 2


NO_URLS = ["", " ", "host:8000", "/v1", "http://", "http:///v1", "ftp://h", "http://h:x"]
NO_URLS += ["http://h:70000", "http://user:hush@/v1", "user:hush@host", "http://user:hush@h:x"]
NO_URLS += ["http://h/v1#part"]


@pytest.mark.parametrize("url", NO_URLS)
def test_what_is_no_url_is_refused_without_its_password(
    url: str, data: Path, capsys: Captured
) -> None:
    said = refused(capsys, data, url)
    assert "--base-url: expected a URL such as http://host:8000 or https://host/v1, got" in said
    assert "hush" not in said


def test_the_table_shows_the_url_and_the_server_s_words(data: Path, capsys: Captured) -> None:
    with Recording(refusal=Refusal(500, b"out of memory on rank 3")) as server:
        assert bench(data, server.url + "/v1?key=hush") == 1
    said = capsys.readouterr().err
    assert f"{server.url}/v1/completions, model m\n" in said
    assert "\n  2 × HTTP 500: out of memory on rank 3\n" in said
    assert "hush" not in said
    assert bench(data, server.url, "--model", "m") == 1
    said = capsys.readouterr().err
    assert said.count("ConnectError: 127.0.0.1:") == 1
    assert "Errno" in said


def test_a_redirect_is_named_with_its_place(data: Path, capsys: Captured) -> None:
    with Recording(refusal=Refusal(307, location="http://other/v1/completions")) as server:
        assert bench(data, server.url) == 1
    assert "  2 × HTTP 307: redirected to http://other/v1/completions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (b'{"data": []}', "the server lists no model; name one with --model"),
        (b'{"data": [{"id": ""}]}', "the server lists no model; name one with --model"),
        (b'{"data": null}', "no model named there (RemoteProtocolError: not the expected JSON"),
        (b"", "no model named there (RemoteProtocolError: not the expected JSON"),
    ],
)
def test_a_server_without_a_model_is_a_sentence(
    models: bytes, said: str, data: Path, capsys: Captured
) -> None:
    with Recording(models=models) as server:
        assert bench(data, server.url) == 2
    assert capsys.readouterr().err.startswith(f"gatescope: {server.url}/v1/models: {said}")
    assert server.posted() == []


# --- headers and keys ---


def test_the_user_s_headers_win_and_each_is_sent_once(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of the environment")
    flags = ["authorization: Bearer first", "Authorization: Bearer mine", "user-agent: me"]
    flags += ["content-type: application/json; charset=utf-8"]
    with Recording() as server:
        url = server.url.replace("//", "//user:pw@")
        assert bench(data, url, *(word for flag in flags for word in ("--header", flag))) == 0
    for asked in server.asked:
        assert len(asked.names) == len(set(asked.names))
        assert asked.headers["authorization"] == "Bearer mine"
        assert asked.headers["user-agent"] == "me"
    assert server.posted()[0].headers["content-type"] == "application/json; charset=utf-8"


def test_a_user_in_the_url_is_basic_auth_everywhere_and_in_no_file(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of the environment")
    with Recording() as server:
        url = server.url.replace("//", "//user:p%40ss@")
        assert bench(data, url, "--result-dir", str(tmp_path / "out"), "--json") == 0
        assert bench(data, url, "--input-len", "4") == 2  # it has no /tokenize
    pair = base64.b64encode(b"user:p@ss").decode()
    assert {asked.path for asked in server.asked} >= {"/v1/models", "/tokenize"}
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Basic {pair}"}
    told = capsys.readouterr()
    result = (tmp_path / "out" / "007.json").read_text()
    assert json.loads(result)["backend"] == server.url
    assert not [w for w in ("p%40ss", "p@ss", pair) if w in told.out + told.err + result]


@pytest.mark.parametrize("key", ["hush-hush\n", " hush-hush ", "\r\nhush-hush\r\n"])
def test_a_key_is_stripped(key: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    monkeypatch.setenv("VLLM_API_KEY", key)
    with Recording() as server:
        assert bench(data, server.url) == 0
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer hush-hush"}


@pytest.mark.parametrize("key", ["hush\nhush", "hush\r\nX-Evil: 1", "hushé", "hush\x7f"])
def test_a_key_that_no_header_holds_is_refused_unseen(
    key: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with Recording() as server:
        assert bench(data, server.url) == 2
    said = capsys.readouterr().err
    assert said.startswith("gatescope: OPENAI_API_KEY: expected a key in ASCII on one line")
    assert "hush" not in said
    assert server.asked == []


def test_a_key_that_the_server_quotes_is_not_shown(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hush-hush")
    words = b"Incorrect API key provided: hush-hush. Find yours at /keys."
    with Recording(refusal=Refusal(401, words)) as server:
        assert bench(data, server.url, "--result-dir", str(tmp_path / "out"), "--json") == 1
    told = capsys.readouterr()
    everything = told.out + told.err + (tmp_path / "out" / "007.json").read_text()
    assert "HTTP 401: Incorrect API key provided: …. Find yours" in told.err
    assert "hush" not in everything


NO_HEADERS = ["Authorization hush", "X-A: 1\r\nX-B: hush", "A b: hush", "X: hushé", ": hush"]
NO_HEADERS += ["Content-Length: 5", "Transfer-Encoding: chunked", "X-Request-Id: hush"]


@pytest.mark.parametrize("header", NO_HEADERS)
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(
    header: str, data: Path, capsys: Captured
) -> None:
    said = refused(capsys, data, "http://host", "--header", header)
    assert "argument --header: expected" in said
    assert "hush" not in said


# --- arguments ---


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--ramp-up", ["1e300", "604801", "-1", "nan", "inf"]),
        ("--request-rate", ["0", "-1", "nan", "1e-300", "1e300", "Infinity"]),
        ("--burstiness", ["0", "1e-9", "1e9", "nan"]),
        ("--stall-timeout", ["0", "1e300"]),
        ("--extra-body", ["", "[1]", '{"a": NaN}', '{"a": 1e999}', "{"]),
        ("--extra-body", ['{"a": "\\ud800"}', '{"a": ' + "[" * 100_000, '{"stream": false}']),
        ("--extra-body", ['{"n": 2}', '{"model": "x"}', '{"prompt": "x"}', '{"messages": []}']),
        ("--model", ["", "  ", "\udcff"]),
        ("--num-prompts", ["0", "-1", "1.5", "2147483648", "9" * 5000, "²"]),
        ("--output-len", ["2147483648"]),
        ("--slo", ["ttft_ms=1e300", "ttft_ms=0", "ttft_ms=nan"]),
        ("--trace-unit", ["us"]),
    ],
)
def test_absurd_values_are_refused(
    flag: str, values: list[str], data: Path, capsys: Captured
) -> None:
    for value in values:
        assert f"argument {flag}: " in refused(capsys, data, "http://host", flag, value)


def test_what_is_not_absurd_is_sent(data: Path) -> None:
    flags = ["--extra-body", '{"stream": true, "n": 1, "max_tokens": 4611686018427387904}']
    flags += ["--request-rate", "1e6", "--burstiness", "1000", "--ramp-up", "0.01"]
    with Recording() as server:
        assert bench(data, server.url, *flags) == 0
    assert [asked.body and asked.body["max_tokens"] for asked in server.posted()] == [2**62] * 2


def test_a_load_of_months_is_refused_before_it_begins(data: Path, capsys: Captured) -> None:
    with Recording() as server:
        assert bench(data, server.url, "--request-rate", "1e-6", "--arrival", "constant") == 2
    assert "the last of 2 requests would be due after 11.57 days" in capsys.readouterr().err
    assert server.posted() == []


# --- traces ---


def traced(folder: Path, *stamps: object) -> Path:
    rows = [{"prompt": f"at {at}", "timestamp": at} for at in stamps]
    return written(folder / "001.jsonl", *rows)


@pytest.mark.parametrize(
    ("stamps", "unit"), [([0.3, 0, 0.15], "s"), ([1_700_000_000_300, 1.7e12, 1.7e12 + 150], "ms")]
)
def test_a_trace_is_replayed_in_its_unit(
    stamps: list[float], unit: str, tmp_path: Path, capsys: Captured
) -> None:
    data = traced(tmp_path, *stamps)
    with Recording() as server:
        flags = ["--arrival", "trace", "--trace-unit", unit, "--json"]
        assert bench(data, server.url, *flags) == 0
    result = json.loads(capsys.readouterr().out)
    assert [a.body and a.body["prompt"] for a in server.posted()] == [
        f"at {at}" for at in sorted(stamps)
    ]
    assert 0.3 <= result["duration"] < 10


@pytest.mark.parametrize("last", [1_700_000_000_000, 1e300, None, "0.5"])
def test_a_trace_that_cannot_be_meant_is_refused_with_its_line(
    last: object, tmp_path: Path, capsys: Captured
) -> None:
    data = traced(tmp_path, 0, last)
    with Recording() as server:
        assert bench(data, server.url, "--arrival", "trace") == 2
    said = capsys.readouterr().err.partition(str(data))[2]
    assert said.startswith(":2: timestamp: expected")
    assert server.asked == []


# --- results ---


def test_a_result_is_never_replaced(tmp_path: Path, capsys: Captured) -> None:
    """Another dataset of one index, a second run, another rate: refused before anything is sent."""
    out = tmp_path / "out"
    with Recording() as server:
        first = written(tmp_path / "one.jsonl", {"prompt": "first"})
        assert bench(first, server.url, "--result-dir", str(out)) == 0
        kept, asked = (out / "001.json").read_bytes(), len(server.asked)
        other = written(tmp_path / "001_x.jsonl", {"prompt": "second"})
        for data, rate in ((other, "inf"), (first, "inf"), (first, "100")):
            flags = ["--request-rate", rate, "--result-dir", str(out)]
            assert bench(data, server.url, *flags) == 2
            assert f"{out}/001.json is there already" in capsys.readouterr().err
    assert ((out / "001.json").read_bytes(), len(server.asked)) == (kept, asked)


@pytest.mark.parametrize("place", ["/dev/null/out", "/proc/out"])
def test_a_folder_that_takes_no_result_is_refused_at_once(
    place: str, data: Path, capsys: Captured
) -> None:
    with Recording() as server:
        assert bench(data, server.url, "--result-dir", place) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"gatescope: --result-dir {place}: cannot be written to: ")
    assert server.asked == []


def test_a_folder_that_fills_up_costs_no_result(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def full(file: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_whole", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    with Recording() as server:
        assert bench(data, server.url, "--result-dir", str(tmp_path / "out")) == 1
    (saved,) = (tmp_path / "elsewhere").iterdir()
    assert json.loads(saved.read_text())["completed"] == 2
    said = capsys.readouterr().err
    assert f"No space left on device; the result is in {saved}" in said
    assert "2 of 2 requests" in said


def test_two_runs_at_once_get_a_file_each(tmp_path: Path) -> None:
    names = [results.write(tmp_path, "001", b"{}", is_partial=False) for _ in range(3)]
    assert [name and name.name for name in names] == ["001.json", "001-r2.json", "001-r3.json"]


def heard() -> None:
    """Tests that run in a script's background have been started with an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_what_there_is_and_prints_the_table(
    number: signal.Signals, tmp_path: Path
) -> None:
    rows = [{"prompt": "a", "timestamp": at} for at in (0, 0, 500)]
    data = written(tmp_path / "001.jsonl", *rows)
    flags = ["--arrival", "trace", "--result-dir", str(tmp_path / "out"), "--json"]
    with Recording() as server:
        command = [*COMMAND, str(data), "--base-url", server.url, *flags]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heard,
        ) as running:
            deadline = time.monotonic() + 30
            while len(server.posted()) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.3)
            running.send_signal(number)
            out, said = running.communicate(timeout=30)
    assert running.returncode == 128 + number
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["001.partial.json"]
    result = json.loads((tmp_path / "out" / "001.partial.json").read_text())
    assert result == json.loads(out)
    assert (result["completed"], result["num_prompts"]) == (2, 2)
    assert "2 of 2 requests in " in said
    assert f"stopped by {number.name}: 2 of 3 requests were sent, 2 were answered" in said


def test_a_signal_before_the_first_request_writes_nothing(data: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        flags = ["--model", "m", "--warmup", "1", "--result-dir", str(tmp_path / "out"), "--json"]
        with subprocess.Popen(
            [*COMMAND, str(data), "--base-url", url, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heard,
        ) as running:
            asked = listener.accept()[0]
            asked.recv(1)  # the warm-up is under way
            running.send_signal(signal.SIGINT)
            out, said = running.communicate(timeout=30)
            asked.close()
    assert (running.returncode, out) == (130, "")
    assert said == "stopped by SIGINT: 0 of 2 requests were sent, 0 were answered\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_signal_that_was_ignored_stays_ignored(data: Path) -> None:
    with Recording() as server:
        command = [*COMMAND, str(data), "--base-url", server.url, "--request-rate", "2"]
        with subprocess.Popen(
            command,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        ) as running:
            deadline = time.monotonic() + 30
            while not server.posted() and time.monotonic() < deadline:
                time.sleep(0.02)
            running.send_signal(signal.SIGHUP)
            assert running.wait(timeout=30) == 0


def test_a_failed_warm_up_is_said(data: Path, capsys: Captured) -> None:
    with Recording(refusal=Refusal(503, b"loading")) as server:
        assert bench(data, server.url, "--warmup", "3") == 1
    said = capsys.readouterr().err
    assert "warm-up: 3 of 3 requests failed, the first with: HTTP 503: loading\n" in said


# --- open files ---


def limited(most: int, data: Path, url: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """The command, where a process may have at most so many files open."""
    return subprocess.run(
        [*COMMAND, str(data), "--base-url", url, "--num-prompts", "100", *flags],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, most)),
    )


def test_too_few_files_are_named_before_anything_is_sent(tmp_path: Path) -> None:
    data = written(tmp_path / "001.jsonl", *({"prompt": f"p{i}"} for i in range(100)))
    with Recording() as server:
        flags = ["--model", "m", "--load-workers", "1"]
        at_once = limited(123, data, server.url, *flags)
        assert at_once.returncode == 2
        assert at_once.stderr == (
            "gatescope: nothing was sent: the limit of open files (ulimit -Hn) allows 99"
            " connections a load worker, and up to 100 are needed; raise it, send fewer at once,"
            " or set more load workers\n"
        )
        assert server.posted() == []
        fewer = limited(123, data, server.url, *flags, "--max-concurrency", "99")
        assert "100 of 100 requests" in fewer.stderr
        spread = limited(60, data, server.url, *flags, "--request-rate", "500")
        assert spread.stderr.startswith(
            "the limit of open files (ulimit -Hn) allows 36 connections a load worker, and up to"
            " 100 are needed if requests pile up"
        )
        assert "100 of 100 requests" in spread.stderr


def test_connections_that_opened_are_used_where_others_were_refused(
    tmp_path: Path, capsys: Captured
) -> None:
    """The server takes two connections and then stops listening: the other requests wait."""
    from threading import Thread

    from support.recording import ANSWER

    listener = socket.create_server(("127.0.0.1", 0))
    answer = b"".join(ANSWER)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"

    def serve(each: socket.socket) -> None:
        with each, each.makefile("rb") as asked:
            for line in asked:
                if line.lower().startswith(b"content-length:"):
                    size = int(line.split(b":")[1])
                elif line == b"\r\n":
                    asked.read(size)
                    each.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(answer), answer))

    def take() -> None:
        taken = [listener.accept()[0] for _ in range(2)]
        listener.close()
        for each in taken:
            Thread(target=serve, args=(each,), daemon=True).start()

    Thread(target=take, daemon=True).start()
    data = written(tmp_path / "001.jsonl", *({"prompt": f"p{i}"} for i in range(20)))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert bench(data, url, "--model", "m", "--json") == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (result["completed"], result["errors_by_kind"]) == (20, {})
