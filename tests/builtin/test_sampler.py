"""Drawing tokens, and what the newest token of a request delivers: end of sequence, limits, stop
strings."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.builtin.engine import Delta, take
from core.builtin.sampler import Sampling, draw
from core.builtin.scheduler import Request, Sequence
from core.builtin.tokenizer import BOS, EOS, PIECES, REPLACEMENT, encode, encode_chat

HALF_THIRD_FIFTH = np.log(np.array([0.3, 0.5, 0.2], np.float32))


def drawn(count: int, **wanted: float) -> Counter[int]:
    sampling = Sampling(max_tokens=1, **wanted)  # type: ignore[arg-type]  # ** has one type
    random = np.random.default_rng(0)
    return Counter(draw(HALF_THIRD_FIFTH, sampling, random) for _ in range(count))


class TestDraw:
    @pytest.mark.parametrize(
        ("temperature", "shares"),
        [
            (1.0, (0.3, 0.5, 0.2)),
            (0.5, (0.09 / 0.38, 0.25 / 0.38, 0.04 / 0.38)),  # p^(1/T), renormalised
            (
                2.0,
                tuple(math.sqrt(p) / sum(map(math.sqrt, (0.3, 0.5, 0.2))) for p in (0.3, 0.5, 0.2)),
            ),
        ],
    )
    def test_temperature_sharpens_or_flattens(
        self, temperature: float, shares: tuple[float, ...]
    ) -> None:
        count = 5000
        seen = drawn(count, temperature=temperature)
        for token, share in enumerate(shares):
            assert abs(seen[token] - count * share) < 4 * math.sqrt(count * share * (1 - share))

    def test_top_k_keeps_the_likeliest(self) -> None:
        assert set(drawn(300, top_k=1)) == {1}
        assert set(drawn(300, top_k=2)) == {0, 1}
        assert set(drawn(300, top_k=-1)) == set(drawn(300, top_k=9)) == {0, 1, 2}

    def test_top_p_keeps_up_to_the_first_that_reaches_it(self) -> None:
        assert set(drawn(300, top_p=0.4)) == {1}
        assert set(drawn(300, top_p=0.6)) == {0, 1}
        assert set(drawn(300, top_p=0.9)) == {0, 1, 2}

    def test_top_p_counts_the_probabilities_that_top_k_left(self) -> None:
        """Of 0.5 and 0.3 the first is 0.625: that alone reaches 0.6, which 0.5 would not."""
        assert set(drawn(300, top_k=2, top_p=0.6)) == {1}

    def test_a_temperature_of_nearly_nothing_is_greedy(self) -> None:
        assert set(drawn(100, temperature=1e-300)) == {1}


def text_of(
    text: str, *, max_tokens: int = 100, stop: tuple[str, ...] = (), ignore_eos: bool = False
) -> list[Delta]:
    """The deltas of a sequence that generates these characters, up to its end."""
    sampling = Sampling(max_tokens, stop=stop, ignore_eos=ignore_eos)
    return deltas_of([EOS if c == "$" else ord(c) for c in text], sampling)


def deltas_of(tokens: list[int], sampling: Sampling) -> list[Delta]:
    sequence = Sequence(Request("", "", (1, 2), sampling))
    deltas: list[Delta] = []
    for token in tokens:
        sequence.tokens.append(token)
        deltas.append(take(sequence, token))
        if deltas[-1].finish_reason:
            break
    return deltas


class TestEnd:
    def test_max_tokens_ends_with_length(self) -> None:
        deltas = text_of("abcdef", max_tokens=3)
        assert [(d.text, d.finish_reason) for d in deltas] == [
            ("a", None),
            ("b", None),
            ("c", "length"),
        ]

    def test_end_of_sequence_ends_with_stop_and_no_text(self) -> None:
        deltas = text_of("ab$cd")
        assert [(d.text, d.finish_reason) for d in deltas] == [
            ("a", None),
            ("b", None),
            ("", "stop"),
        ]

    def test_ignore_eos_goes_on_and_gives_it_a_text_that_counts(self) -> None:
        deltas = text_of("a$b", max_tokens=3, ignore_eos=True)
        assert [(d.text, d.finish_reason) for d in deltas] == [
            ("a", None),
            (REPLACEMENT, None),
            ("b", "length"),
        ]

    def test_a_stop_string_over_several_tokens_is_never_sent(self) -> None:
        deltas = text_of("so END of it", stop=("END", "xyz"))
        assert [d.text for d in deltas] == ["", "", "s", "o", " ", ""]
        assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "END")

    def test_text_held_back_for_a_stop_string_comes_with_the_last_token(self) -> None:
        deltas = text_of("a EN", max_tokens=4, stop=("END",))
        assert ("".join(d.text for d in deltas), deltas[-1].finish_reason) == ("a EN", "length")
        deltas = text_of("a EN$", stop=("END",))
        assert ("".join(d.text for d in deltas), deltas[-1].finish_reason) == ("a EN", "stop")

    @given(
        st.text("abc", max_size=20),
        st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    )
    @example("cab", ["b", "ab"])
    def test_stop_strings_end_the_text_where_the_first_is_complete(
        self, text: str, stops: list[str]
    ) -> None:
        sent = "".join(d.text for d in text_of(text, max_tokens=len(text) or 1, stop=tuple(stops)))
        ends = [
            i + 1 for i in range(len(text)) if any(text[: i + 1].endswith(stop) for stop in stops)
        ]
        if not ends:
            assert sent == text
        else:
            found = [stop for stop in stops if text[: ends[0]].endswith(stop)]
            assert sent == text[: ends[0] - max(map(len, found))]


class TestTokens:
    def test_text_is_bos_and_its_utf8_bytes(self) -> None:
        assert encode("aé") == [BOS, 0x61, 0xC3, 0xA9]
        assert encode("aé", bos=False) == [0x61, 0xC3, 0xA9]

    def test_a_chat_is_turns_in_mixtrals_form(self) -> None:
        tokens = encode_chat([("user", "hi"), ("assistant", "yo"), ("user", "so")])
        assert tokens == [BOS, *b" [INST] hi [/INST]", *b" yo", EOS, *b" [INST] so [/INST]"]

    def test_every_token_has_one_printable_character(self) -> None:
        """A client counts events that have text, and the text ends up on terminals."""
        assert {len(piece) for piece in PIECES} == {1}
        assert all(piece.isprintable() or piece in "\n\t" for piece in PIECES)
        assert PIECES[ord("a")] == "a"
