"""The HTTP API against a running server: what vLLM's clients send, and what they must get back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from support.reference import greedy
from support.running import KEY, Running, eventually, server

from core.builtin import checkpoint
from core.builtin.tokenizer import BOS, PIECES, encode
from core.builtin.weights import Shape

MAX_MODEL_LEN, MAX_NUM_SEQS = 1024, 4
FOREVER: dict[str, Any] = {"max_tokens": 1000, "ignore_eos": True}
USAGE_ALWAYS = {"include_usage": True, "continuous_usage_stats": True}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    limits = (
        "--max-model-len",
        MAX_MODEL_LEN,
        "--max-num-seqs",
        MAX_NUM_SEQS,
        "--max-num-batched-tokens",
        64,
    )
    with server(*limits, "--data-parallel-size", 2, "--enable-expert-parallel") as running:
        yield running


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
    }


class TestCompletions:
    def test_greedy_text_is_the_reference_models(self, running: Running) -> None:
        reference = greedy(Shape(), checkpoint.read(checkpoint.FOLDER, Shape()), encode("To be"), 6)
        answer = running.post(prompt="To be", max_tokens=6, temperature=0, ignore_eos=True).json()
        assert answer["choices"] == [
            {
                "index": 0,
                "text": "".join(PIECES[token] for token in reference[-6:]),
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ]
        assert answer["usage"] == usage(6, 6)  # BOS and five bytes
        assert (answer["object"], answer["model"], answer["id"][:5]) == (
            "text_completion",
            "builtin",
            "cmpl-",
        )

    def test_a_stream_has_one_event_a_token_and_the_same_text(self, running: Running) -> None:
        asked: dict[str, Any] = {
            "prompt": "Once",
            "max_tokens": 9,
            "temperature": 0,
            "ignore_eos": True,
        }
        with running.stream(**asked, stream_options=USAGE_ALWAYS) as stream:
            *tokens, last = stream
        assert [event["usage"] for event in tokens] == [usage(5, n) for n in range(1, 10)]
        assert [event["choices"][0]["finish_reason"] for event in tokens] == [None] * 8 + ["length"]
        assert all(len(event["choices"][0]["text"]) == 1 for event in tokens)
        assert (last["choices"], last["usage"]) == ([], usage(5, 9))
        whole = running.post(**asked).json()["choices"][0]["text"]
        assert "".join(event["choices"][0]["text"] for event in tokens) == whole

    @pytest.mark.parametrize("options", [None, {"continuous_usage_stats": True}])
    def test_a_stream_tells_usage_only_where_it_was_requested_for(
        self, running: Running, options: dict[str, bool] | None
    ) -> None:
        with running.stream(
            prompt="a", max_tokens=3, ignore_eos=True, stream_options=options
        ) as stream:
            assert [event["usage"] for event in stream] == [None] * 3

    def test_tokens_may_be_sent_as_numbers(self, running: Running) -> None:
        asked = {"max_tokens": 5, "temperature": 0}
        as_text = running.post(prompt="ab", **asked).json()
        as_tokens = running.post(prompt=[BOS, 0x61, 0x62], **asked).json()
        assert as_text["choices"] == as_tokens["choices"]

    def test_a_seed_repeats_its_draws_and_another_makes_others(self, running: Running) -> None:
        texts = [
            running.post(prompt="x", max_tokens=20, seed=s).json()["choices"][0]["text"]
            for s in (7, 7, -8)
        ]
        assert texts[0] == texts[1] != texts[2]

    def test_a_stop_string_ends_the_text_and_is_named(self, running: Running) -> None:
        asked: dict[str, Any] = {
            "prompt": "stop",
            "max_tokens": 30,
            "temperature": 0,
            "ignore_eos": True,
        }
        text = running.post(**asked).json()["choices"][0]["text"]
        stop = text[10:13]
        with running.stream(**asked, stop=[stop]) as stream:
            choices = [event["choices"][0] for event in stream]
        assert "".join(choice["text"] for choice in choices) == text[: text.index(stop)]
        assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", stop)

    def test_without_ignore_eos_a_sequence_ends_by_itself(self, running: Running) -> None:
        """At a high temperature all 258 tokens are about as likely: one of 8 x 240 draws is EOS but
        for 1 in 1700."""
        with ThreadPoolExecutor(8) as pool:
            asked = {"prompt": "e", "max_tokens": 240, "temperature": 50}
            answers = list(pool.map(lambda seed: running.post(**asked, seed=seed).json(), range(8)))
        ended = [a for a in answers if a["choices"][0]["finish_reason"] == "stop"]
        assert ended
        for answer in ended:  # EOS counts as a token, and has no text
            assert len(answer["choices"][0]["text"]) == answer["usage"]["completion_tokens"] - 1

    def test_more_requests_than_max_num_seqs_all_end(self, running: Running) -> None:
        with ThreadPoolExecutor(3 * MAX_NUM_SEQS) as pool:
            asked = {"max_tokens": 12, "ignore_eos": True}
            answers = list(
                pool.map(lambda n: running.post(prompt="p" * n, **asked).json(), range(1, 100, 9))
            )
        assert [answer["usage"] for answer in answers] == [
            usage(n + 1, 12) for n in range(1, 100, 9)
        ]


class TestChat:
    def test_whole_and_streamed(self, running: Running) -> None:
        asked: dict[str, Any] = {
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0,
            "max_tokens": 4,
            "ignore_eos": True,
        }
        answer = running.client.post("/v1/chat/completions", json=asked).json()
        message = answer["choices"][0]["message"]
        assert (answer["object"], answer["usage"], message["role"]) == (
            "chat.completion",
            usage(19, 4),
            "assistant",
        )
        with running.stream(
            "/v1/chat/completions", **asked, stream_options={"include_usage": True}
        ) as stream:
            opening, *tokens, last = stream
        assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert (
            "".join(event["choices"][0]["delta"]["content"] for event in tokens)
            == message["content"]
        )
        assert tokens[-1]["choices"][0]["finish_reason"] == "length"
        assert (last["object"], last["choices"], last["usage"]) == (
            "chat.completion.chunk",
            [],
            usage(19, 4),
        )

    def test_content_in_parts_and_max_completion_tokens(self, running: Running) -> None:
        parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
        asked = {
            "messages": [{"role": "user", "content": parts}],
            "max_completion_tokens": 2,
            "ignore_eos": True,
        }
        answer = running.client.post("/v1/chat/completions", json=asked).json()
        assert answer["usage"] == usage(20, 2)  # the parts joined by a line break

    def test_without_a_limit_it_fills_the_context(self, running: Running) -> None:
        asked = {"messages": [{"role": "user", "content": "x" * 968}], "ignore_eos": True}
        answer = running.client.post("/v1/chat/completions", json=asked).json()
        assert answer["usage"] == usage(985, MAX_MODEL_LEN - 985)


class TestOtherRoutes:
    def test_health_version_and_metrics_need_no_key(self, running: Running) -> None:
        for path in ("/health", "/version", "/metrics"):
            assert httpx.get(running.url + path, trust_env=False).status_code == 200

    def test_version_says_what_really_runs(self, running: Running) -> None:
        version = running.client.get("/version").json()
        assert version["engine"] == "builtin (NumPy, CPU)"
        assert (version["parallel"], version["ranks"]) == ("expert parallel", 2)
        assert (version["max_num_seqs"], version["max_num_batched_tokens"]) == (MAX_NUM_SEQS, 64)

    def test_models_names_the_one_and_its_length(self, running: Running) -> None:
        (model,) = running.client.get("/v1/models").json()["data"]
        assert (model["id"], model["max_model_len"]) == ("builtin", MAX_MODEL_LEN)

    def test_tokenize_gives_the_tokens_of_a_prompt(self, running: Running) -> None:
        asked = {"model": "builtin", "prompt": "hé"}
        answer = running.client.post(
            "/tokenize", json={**asked, "add_special_tokens": False}
        ).json()
        assert answer == {
            "count": 3,
            "max_model_len": MAX_MODEL_LEN,
            "tokens": [0x68, 0xC3, 0xA9],
            "token_strs": None,
        }
        assert running.client.post("/tokenize", json=asked).json()["tokens"] == [
            BOS,
            0x68,
            0xC3,
            0xA9,
        ]

    def test_metrics_count_under_vllms_names(self, running: Running) -> None:
        histograms = ("time_to_first_token", "inter_token_latency", "e2e_request_latency")
        names = [
            "prompt_tokens_total",
            "generation_tokens_total",
            *(f"{h}_seconds_count" for h in histograms),
        ]
        before = [running.metric(name) for name in names]
        finished = running.metric("request_success_total", finished_reason="length")
        running.post(prompt="12345", max_tokens=7, ignore_eos=True)
        after = [running.metric(name) for name in names]
        assert [b - a for a, b in zip(before, after, strict=True)] == [6, 7, 1, 6, 1]
        assert running.metric("request_success_total", finished_reason="length") == finished + 1
        for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            assert running.metric(gauge) == 0
        bucket = running.metric("inter_token_latency_seconds_bucket", le="+Inf")
        assert bucket == running.metric("inter_token_latency_seconds_count")


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (b"{", "truncated"),
            (b"[]", "Expected `object`"),
            (b'{"max_tokens": 3}', "missing required field `prompt`"),
            (b'{"prompt": 5}', "$.prompt"),
            (b'{"prompt": "\\ud800"}', ""),
            (b'{"prompt": "a", "max_tokens": 0}', "$.max_tokens"),
            (b'{"prompt": "a", "temperature": -1}', "$.temperature"),
            (b'{"prompt": "a", "top_p": 0}', "$.top_p"),
            (b'{"prompt": "a", "n": 2}', "$.n"),
            (b'{"prompt": []}', "empty"),
            (b'{"prompt": [1, 258]}', "258"),
            (b'{"prompt": "a", "max_tokens": 1023}', "maximum context length is 1024"),
        ],
    )
    def test_a_request_that_cannot_be_done(self, running: Running, body: bytes, said: str) -> None:
        answer = running.client.post("/v1/completions", content=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (400, 400, "BadRequestError")
        assert said in error["message"]

    def test_the_longest_prompt_that_fits_is_taken(self, running: Running) -> None:
        answer = running.post(prompt="a" * (MAX_MODEL_LEN - 2), max_tokens=1, ignore_eos=True)
        assert answer.json()["usage"] == usage(MAX_MODEL_LEN - 1, 1)
        assert running.post(prompt="a" * (MAX_MODEL_LEN - 1), max_tokens=1).status_code == 400

    @pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
    def test_another_model(self, running: Running, path: str) -> None:
        answer = running.client.post(path, json={"model": "gpt", "prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NotFoundError")
        assert "gpt" in answer.json()["error"]["message"]

    @pytest.mark.parametrize("key", [None, "Bearer wrong", KEY, f"Basic {KEY}"])
    def test_a_wrong_key(self, running: Running, key: str | None) -> None:
        headers = {"Authorization": key} if key else {}
        for method, path in (
            ("GET", "/v1/models"),
            ("POST", "/v1/completions"),
            ("POST", "/v1/chat/completions"),
        ):
            answer = httpx.request(method, running.url + path, headers=headers, trust_env=False)
            assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})

    @pytest.mark.parametrize(
        ("method", "path", "code"), [("GET", "/nowhere", 404), ("GET", "/v1/completions", 405)]
    )
    def test_no_such_route(self, running: Running, method: str, path: str, code: int) -> None:
        answer = running.client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (code, code)


class TestClientsThatLeave:
    def test_a_stream_left_early_frees_its_slot(self, running: Running) -> None:
        aborted = running.metric("request_success_total", finished_reason="abort")
        with running.stream(prompt="gone", **FOREVER) as stream:
            assert len(list(itertools.islice(stream, 2))) == 2
        eventually(
            lambda: running.metric("request_success_total", finished_reason="abort") == aborted + 1
        )
        eventually(lambda: running.metric("num_requests_running") == 0)

    def test_a_request_that_still_waits_can_be_left(self, running: Running) -> None:
        """All slots are taken: the next one waits, leaves, and is forgotten; the others go on."""
        aborted = running.metric("request_success_total", finished_reason="abort")
        with ExitStack() as stack:
            streams = [
                stack.enter_context(running.stream(prompt="w", **FOREVER))
                for _ in range(MAX_NUM_SEQS)
            ]
            with running.stream(prompt="late", **FOREVER):
                eventually(lambda: running.metric("num_requests_waiting") == 1)
            eventually(lambda: running.metric("num_requests_waiting") == 0)
            assert running.metric("num_requests_running") == MAX_NUM_SEQS
            assert running.metric("request_success_total", finished_reason="abort") == aborted + 1
            assert [next(stream)["choices"][0]["finish_reason"] for stream in streams] == [
                None
            ] * MAX_NUM_SEQS
        eventually(
            lambda: running.metric("request_success_total", finished_reason="abort") == aborted + 5
        )
