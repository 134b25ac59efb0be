"""The options of `gatescope` itself, which select the experiment."""

from __future__ import annotations

import functools
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from core.commands import experiment
from core.commands.arguments import ENGINES, PATTERNS, Parser
from core.experiment.dose import Pattern
from core.experiment.invocation import Invocation

NAMES = st.text(st.characters(exclude_characters=",\0", codec="utf-8"), min_size=1).filter(
    lambda name: name == name.strip()
)
PATHS = st.builds(Path, st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
LEVELS = st.floats(0, 100)
KEYS = st.from_regex(r"(experiment|model|backends\.[a-z*]{1,9})\.[a-z_]{1,9}", fullmatch=True)
PLAIN = (
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab .", min_size=1), inner, max_size=3)
    ),
    max_leaves=4,
)


@st.composite
def invocations(draw: st.DrawFn) -> Invocation:
    patterns: list[Pattern] = draw(st.lists(st.sampled_from(PATTERNS)))
    return Invocation(
        config_path=draw(PATHS),
        out=draw(st.none() | PATHS),
        only=tuple(draw(st.lists(NAMES))),
        backends=tuple(draw(st.lists(NAMES))),
        engine=draw(st.none() | st.sampled_from(ENGINES)),
        levels=tuple(draw(st.lists(LEVELS))),
        patterns=tuple(patterns),
        settings=draw(st.dictionaries(KEYS.filter(lambda key: key < "f"), VALUES, max_size=3)),
        axes=draw(
            st.dictionaries(
                KEYS.filter(lambda key: key > "f"),
                st.lists(VALUES, min_size=2, max_size=3),
                max_size=3,
            )
        ),
        resume=draw(st.none() | PATHS),
        retry_cancelled=draw(st.booleans()),
    )


@functools.cache
def parser() -> Parser:
    """Made once: it takes longer than a hundred lines to parse."""
    made = Parser()
    experiment.add_arguments(made)
    return made


def parsed(arguments: list[str]) -> Invocation:
    return experiment.invocation(parser().parse_args(arguments))


@settings(max_examples=25)  # drawing one takes most of the time
@given(invocations())
def test_an_invocation_comes_back_from_its_own_arguments(invocation: Invocation) -> None:
    assert parsed(invocation.arguments()) == invocation


def test_without_options_everything_is_left_to_the_config() -> None:
    assert parsed([]) == Invocation()
    assert Invocation().arguments() == ["--config=experiments.toml"]
