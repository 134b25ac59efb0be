"""`gatescope bench` from its command line to a server that keeps what it was asked."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.recording import Recording
from support.truth import Truth

from core import cli
from core.load import metrics
from core.load.record import USER_STAMPS


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return written(
        tmp_path / "007_0.5.jsonl", *({"id": f"q{i}", "text": f"What is {i}?"} for i in range(6))
    )


def bench(url: str, data: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """The result of one run in which every request was answered."""
    assert (
        cli.main(["bench", str(data), "--base-url", url, "--output-len", "3", "--json", *flags])
        == 0
    )
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_key_headers_and_fields_reach_the_server(
    prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    flags = [
        "--header",
        "X-Team: blue",
        "--extra-body",
        '{"top_k": 5, "ignore_eos": null}',
        "--chat",
        "--max-concurrency",
        "1",
    ]
    with Recording() as server:
        assert bench(server.url, prompts, capsys, *flags)["model_id"] == "m"
    assert [asked.path for asked in server.asked] == ["/v1/models", *["/v1/chat/completions"] * 6]
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer secret"}
    assert {asked.headers["x-team"] for asked in server.asked} == {"blue"}
    body = server.posted()[0].body
    assert body is not None
    assert body["messages"] == [{"role": "user", "content": "What is 0?"}]
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_k"]) == (
        "m",
        3,
        0.0,
        5,
    )
    assert "ignore_eos" not in body


def asked_for(
    prompts: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[list[tuple[Any, Any]], float | None]:
    """Temperature and seed of each request in dataset order, and the result's temperature."""
    with Recording() as server:
        result = bench(server.url, prompts, capsys, "--max-concurrency", "1", *flags)
    bodies = [asked.body or {} for asked in server.posted()]
    return [(b.get("temperature"), b.get("seed")) for b in bodies], result["temperature"]


def test_answers_are_greedy_unless_a_temperature_is_asked_for_each_with_a_seed_of_its_own(
    prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked_for(prompts, capsys) == ([(0.0, None)] * 6, 0.0)
    drawn = [(0.7, seed) for seed in (5, 6, 7, 8, 9, 10)]
    assert asked_for(prompts, capsys, "--temperature", "0.7", "--seed", "5") == (drawn, 0.7)


def test_the_result_names_the_temperature_that_extra_body_asks_for(
    prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--extra-body", '{"temperature": 0.5, "seed": 3}']
    assert asked_for(prompts, capsys, *given) == ([(0.5, 3)] * 6, 0.5)
    removed = ["--temperature", "1", "--extra-body", '{"temperature": null, "seed": null}']
    assert asked_for(prompts, capsys, *removed) == ([(None, None)] * 6, None)


@pytest.mark.parametrize("given", ["-1", "101", "nan", "warm"])
def test_a_temperature_that_is_none_is_refused(
    given: str, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", str(prompts), "--port", "1", f"--temperature={given}"])
    assert stop.value.code == 2
    assert "argument --temperature: expected a number" in capsys.readouterr().err


def test_without_a_key_none_is_sent(
    prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("VLLM_API_KEY", "")
    with Recording() as server:
        bench(server.url, prompts, capsys, "--num-prompts", "1")
    assert all("authorization" not in asked.headers for asked in server.asked)


def test_usage_is_asked_of_every_event_and_says_how_many_tokens_it_carried(
    prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Recording(pause_s=0.01) as server:
        result = bench(server.url, prompts, capsys)
    wanted = {"include_usage": True, "continuous_usage_stats": True}
    assert all(asked.body and asked.body["stream_options"] == wanted for asked in server.posted())
    assert (result["shared_events"], result["output_tokens_from"], result["output_lens"]) == (
        6,
        {"usage": 6},
        [3] * 6,
    )
    assert [len(gaps) for gaps in result["itls"]] == [2] * 6


@pytest.mark.parametrize("layout", ["ShareGPT", "JSONL of prompts"])
def test_other_datasets_are_sent_in_their_order(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["first", "Σ second", "third"]
    if layout == "ShareGPT":
        turns = [
            [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}] for text in texts
        ]
        data = tmp_path / "talks.json"
        data.write_text(
            json.dumps([{"id": str(i), "conversations": each} for i, each in enumerate(turns)])
        )
    else:
        data = written(tmp_path / "own.jsonl", *({"prompt": text} for text in texts))
    with Recording() as server:
        bench(server.url, data, capsys, "--max-concurrency", "1")
    assert [asked.body and asked.body["prompt"] for asked in server.posted()] == texts


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--request-rate", "200"], {"arrival": "poisson", "request_rate": 200.0}),
        (["--request-rate", "200", "--burstiness", "0.5"], {"burstiness": 0.5}),
        (
            ["--request-rate", "200", "--ramp-up", "0.02", "--arrival", "constant"],
            {"ramp_up_s": 0.02},
        ),
        (
            ["--max-concurrency", "2", "--ramp-up", "0.02"],
            {"max_concurrency": 2, "request_rate": "inf"},
        ),
        (["--arrival", "trace"], {"arrival": "trace"}),
        (["--load-workers", "2"], {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_arrival_sends_each_prompt_once_and_is_told_in_the_result(
    flags: list[str],
    told: dict[str, Any],
    truth: Truth,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [{"id": f"q{i}", "text": f"What is {i}?", "timestamp": 7 + i / 100} for i in range(6)]
    result = bench(truth.url, written(tmp_path / "007.jsonl", *lines), capsys, *flags)
    assert {name: result[name] for name in told} == told
    assert sorted(row["prompt_head"] for row in truth.rows().values()) == [
        f"What is {i}?" for i in range(6)
    ]
    assert all(
        late >= sent for late, sent in zip(result["ttfts_from_due"], result["ttfts"], strict=True)
    )


def test_a_server_that_closes_kept_connections_loses_no_request(
    prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Recording(is_fickle=True) as server:
        result = bench(server.url, prompts, capsys, "--max-concurrency", "1")
    assert (result["completed"], result["client"]["connections"], len(server.posted())) == (6, 6, 6)


def test_tls_with_a_certificate_of_one_s_own(
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    command += " -keyout key.pem -out cert.pem -addext subjectAltName=IP:127.0.0.1"
    if subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("openssl cannot make a certificate here")
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "key.pem").read_text() + (tmp_path / "cert.pem").read_text())
    with Recording(both) as server:
        assert cli.main(["bench", str(prompts), "--base-url", server.url]) == 2
        assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().err
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        result = bench(server.url, prompts, capsys)
    assert (result["completed"], result["client"]["stamps"]) == (6, USER_STAMPS)


def test_the_pages_quote_the_definitions() -> None:
    page = (Path(__file__).parents[2] / "docs" / "definitions.md").read_text(encoding="utf-8")
    assert metrics.__doc__ is not None
    definitions = metrics.__doc__.partition("\n\n")[2].partition("Times are")[0].strip()
    assert definitions.startswith("- TTFT: ")
    assert definitions in page
