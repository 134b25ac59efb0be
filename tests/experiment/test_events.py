"""Every event goes through the journal and comes back as it was."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.vocabulary import KINDS, any_event, values

from core.experiment import events
from core.experiment.events import AnyEvent


def test_every_kind_of_event_is_in_the_vocabulary() -> None:
    defined = {
        k for k in vars(events).values() if isinstance(k, type) and issubclass(k, events.Event)
    }
    assert defined - {events.Event} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=30)
@given(data=st.data())
def test_an_event_comes_back_as_it_was(kind: type[AnyEvent], data: st.DataObject) -> None:
    event = data.draw(values(kind))
    line = events.encode(event)
    assert b"\n" not in line
    assert events.decode(line) == event
    assert type(events.decode(line)) is kind


def test_a_line_names_its_event_and_moment() -> None:
    event = events.RunFailed(at=1.5, run="baseline/001", reason="no")
    assert (
        events.encode(event) == b'{"event":"RunFailed","at":1.5,"run":"baseline/001","reason":"no"}'
    )


def test_an_event_is_stamped_when_it_is_made() -> None:
    first, second = events.BackendStopped(backend="a"), events.BackendStopped(backend="a")
    assert 1.7e9 < first.at <= second.at


@given(event=any_event, cut=st.floats(0, 1, exclude_max=True))
def test_a_torn_line_is_no_event(event: AnyEvent, cut: float) -> None:
    line = events.encode(event)
    with pytest.raises(msgspec.DecodeError):
        events.decode(line[: int(len(line) * cut)])


@given(
    line=st.binary(max_size=40)
    | st.sampled_from([b'{"event":"RunFailed","run":"\xff"}', b"[" * 100_000])
)
def test_what_is_no_event_is_a_decode_error(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        events.decode(line)
