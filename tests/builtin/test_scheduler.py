"""Which sequences take part in a step, with how many tokens: worked examples, and properties of
random traffic."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.builtin.sampler import Sampling
from core.builtin.scheduler import Request, Scheduler, Sequence, Step


def sequence(prompt: int, max_tokens: int = 100, name: str = "") -> Sequence:
    return Sequence(Request(name, "", (1,) * prompt, Sampling(max_tokens)))


def queued(scheduler: Scheduler, *prompts: int) -> list[Sequence]:
    sequences = [sequence(prompt) for prompt in prompts]
    for each in sequences:
        scheduler.add(each)
    return sequences


def advance(step: Step) -> None:
    """What the engine does with a step that it has run."""
    due = [chunk.sequence for chunk in step if chunk.completes]
    for each, tokens in step:
        each.computed += tokens
    for each in due:
        each.tokens.append(0)


def shares(step: Step, sequences: list[Sequence]) -> dict[int, int]:
    """Place in `sequences` → tokens of the step."""
    return {sequences.index(chunk.sequence): chunk.tokens for chunk in step}


def test_more_sequences_than_max_num_seqs_wait_in_order_of_arrival() -> None:
    scheduler = Scheduler(2, 100)
    sequences = queued(scheduler, 3, 4, 5)
    assert shares(scheduler.schedule(), sequences) == {0: 3, 1: 4}
    assert list(scheduler.waiting) == [sequences[2]]


def test_a_prompt_longer_than_the_step_is_taken_in_chunks_and_decodes_come_first() -> None:
    scheduler = Scheduler(4, 10)
    sequences = queued(scheduler, 4, 13, 5)
    seen = []
    for _ in range(4):
        step = scheduler.schedule()
        seen.append(shares(step, sequences))
        advance(step)
    assert seen == [
        {0: 4, 1: 6},
        {0: 1, 1: 7, 2: 2},  # the decode, the rest of the long prompt, what is left for the next
        {0: 1, 1: 1, 2: 3},
        {0: 1, 1: 1, 2: 1},
    ]


def test_a_chunk_knows_whether_a_token_is_drawn_and_what_of_it_is_prompt() -> None:
    scheduler = Scheduler(1, 3)
    queued(scheduler, 4)
    seen = []
    for _ in range(3):
        step = scheduler.schedule()
        seen += [(chunk.tokens, chunk.completes, chunk.prefill) for chunk in step]
        advance(step)
    assert seen == [(3, False, 3), (1, True, 1), (1, True, 0)]


def test_a_finished_sequence_frees_its_slot_for_the_next() -> None:
    scheduler = Scheduler(2, 100)
    first, second, third = queued(scheduler, 1, 1, 1)
    scheduler.schedule()
    assert (first.slot, second.slot) == (0, 1)
    assert scheduler.remove(first)
    scheduler.schedule()
    assert third.slot == 0


def test_abort_takes_out_waiting_and_running_sequences_and_nothing_twice() -> None:
    scheduler = Scheduler(1, 100)
    running, waiting = queued(scheduler, 1, 1)
    scheduler.schedule()
    assert [scheduler.remove(waiting), scheduler.remove(running), scheduler.remove(running)] == [
        True,
        True,
        False,
    ]
    assert scheduler.is_idle
    assert scheduler.schedule() == []


@pytest.mark.parametrize(("seqs", "tokens"), [(0, 10), (4, 3), (-1, 5)])
def test_limits_that_could_starve_a_sequence_are_refused(seqs: int, tokens: int) -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens"):
        Scheduler(seqs, tokens)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_sequence_ends_and_no_step_is_over_budget(data: st.DataObject) -> None:
    max_seqs = data.draw(st.integers(1, 4), "max_num_seqs")
    budget = data.draw(st.integers(max_seqs, 12), "max_num_batched_tokens")
    sizes = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6)), max_size=10)
    arriving = [
        sequence(prompt, wanted) for prompt, wanted in data.draw(sizes, "prompts and max_tokens")
    ]
    scheduler = Scheduler(max_seqs, budget)
    passed = dict.fromkeys(arriving, 0)
    admitted: list[Sequence] = []
    aborted: set[Sequence] = set()
    ended: set[Sequence] = set()
    left = list(arriving)
    while left or not scheduler.is_idle:
        for _ in range(data.draw(st.integers(0, len(left)))):
            scheduler.add(left.pop(0))
        here = [*scheduler.running, *scheduler.waiting]
        if here and data.draw(st.integers(0, 9)) == 0:
            aborted.add(gone := data.draw(st.sampled_from(here)))
            assert scheduler.remove(gone)
        was_idle = scheduler.is_idle
        step = scheduler.schedule()
        assert bool(step) != was_idle
        assert sum(chunk.tokens for chunk in step) <= budget
        assert all(1 <= chunk.tokens <= chunk.sequence.remaining for chunk in step)
        assert len({chunk.sequence for chunk in step}) == len(step)
        slots = [each.slot for each in scheduler.running]
        assert len(set(slots)) == len(slots) <= max_seqs
        assert set(slots) <= set(range(max_seqs))
        decoding = {each for each in scheduler.running if each.generated}
        assert decoding <= {chunk.sequence for chunk in step}, "a decode was left out"
        admitted += [each for each in scheduler.running if each not in admitted]
        for each, tokens in step:
            passed[each] += tokens
        advance(step)
        for each in [
            each for each in scheduler.running if each.generated == each.request.sampling.max_tokens
        ]:
            ended.add(each)
            assert scheduler.remove(each)
    assert ended | aborted == set(arriving)
    assert not ended & aborted
    assert admitted == [each for each in arriving if each in admitted], "not in order of arrival"
    for each in ended:
        assert passed[each] == len(each.request.prompt) + each.request.sampling.max_tokens - 1
    newcomers = queued(scheduler, *[1] * max_seqs)
    assert sorted(chunk.sequence.slot for chunk in scheduler.schedule()) == list(range(max_seqs)), (
        newcomers
    )
