"""The advice on placements: right on planted logs, and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.analysis import advice as planted
from core.analysis import advice, traffic
from core.analysis.advice import CANNOT_TELL, DOES_NOT, PAYS, Pricing
from core.analysis.cost_model import ROWS, CostModel
from core.analysis.traffic import Steps
from core.recorder.gatescope_recorder.kernel import Kernel, Tiling
from core.routing import placement
from core.routing.gatelog import GateLog
from core.stats.estimate import Estimate


@pytest.mark.parametrize("case", planted.CASES[:3], ids=lambda case: case.name)
def test_the_verdict_is_right_in_every_one_of_20_seeded_runs(case: planted.Case) -> None:
    assert planted.verdicts(case, 20) == {case.want: 20}


def test_the_interval_holds_the_truth() -> None:
    held, mean, truth = planted.covered(replace(planted.COVERAGE[0], steps=500), 30, 3000)
    assert held >= 25  # 95 % of 30 is 28.5
    assert mean == pytest.approx(truth, rel=0.1)


def steps_of(loads: list[list[int]], count: int = 256) -> Steps:
    """`count` steps of one layer; on two ranks, experts in order."""
    whole = np.array(loads * (count // len(loads)))[:, None]
    return replace(
        planted.as_steps(np.zeros((count, 1, planted.EXPERTS), int), int(whole[0].sum())),
        loads=whole,
        placement=(0, 0, 1, 1),
        by_rank=whole @ np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]]),
        numbers=(3,),
    )


def advised(steps: Steps, smallest: float = 1.0, spare: tuple[int, ...] = (2,)) -> advice.Advised:
    return advice.of_phase("decode", steps, Pricing(), ranks=2, spare=spare, smallest=smallest)


def test_savings_by_hand() -> None:
    """Ranks 12 and 4 as it ran. Packed: 8 + 1 and 4 + 3: 9. Two replicas go to the expert with 8,
    which stays the largest per copy: 4 + 8/3 + 1 and 3 + 8/3 + 8/3: 25/3."""
    found = advised(steps_of([[8, 4, 1, 3]])).advice
    packed, replicated = found.options
    assert (found.unit, found.verdict, found.chosen) == ("tokens", PAYS, "EPLB global, 2 spare")
    assert packed.saved.value == pytest.approx(25.0)
    assert replicated.saved.value == pytest.approx(100 * (12 - 25 / 3) / 12)
    assert found.ideal == pytest.approx(100 / 3)
    assert (packed.spare, replicated.spare, packed.bytes) == (0, 2, None)
    # packed has e0 and e2 on one rank: e2 and e1 change sides
    assert packed.moved == 2
    assert found.minutes == pytest.approx(255 * 20 / 60_000)


def test_work_counts_where_the_kernel_tiles_and_replicas_have_bytes() -> None:
    """Tiles of 4 rows, all in one wave: nothing can be saved, whatever the tokens."""
    kernel = Kernel(
        "TRITON", "bfloat16", sms=100, columns=(8, 16), tilings=(Tiling(99, 4, 8),), source="tuned"
    )
    found = advised(replace(steps_of([[8, 4, 1, 3]]), kernel=kernel)).advice
    assert (found.unit, found.verdict) == ("work", DOES_NOT)
    assert [option.saved.value for option in found.options] == [0, 0]
    # an expert: 8 × 16 of gate and up, and 16 × 4 down, two bytes each; one more a rank
    assert found.options[1].bytes == (8 * 16 + 16 * 4) * 2


def test_time_where_there_is_a_cost_model() -> None:
    """2 µs an active expert and 0.5 µs a token of the busiest rank: 4 + 6 as it ran, 4 + 4.5
    packed, of steps of 10 ms."""
    terms = {"active": Estimate(2.0), "rows": Estimate(0.5)}
    model = CostModel(phase="decode", by=ROWS, terms=terms)
    steps = steps_of([[8, 4, 1, 3]])
    found = advice.of_phase(
        "decode", steps, Pricing(model), ranks=2, spare=(2,), smallest=1.0
    ).advice
    packed = found.options[0]
    assert (found.unit, found.verdict) == ("µs", DOES_NOT)
    assert packed.saved.value == pytest.approx(100 * 1.5 / 10_000)
    assert packed.saved_ms is not None
    assert packed.saved_ms.value == pytest.approx(0.0015)


def test_too_few_steps_are_said() -> None:
    found = advised(steps_of([[8, 4, 1, 3]], 64)).advice
    assert (found.verdict, found.reason) == (CANNOT_TELL, "128 steps are needed")


def test_how_long_to_record_on() -> None:
    """What matters half of the interval's reach away: four times the log, so three times more."""
    draw = np.random.default_rng(0)
    steps = steps_of(draw.multinomial(16, [0.25] * 4, size=256).tolist())
    saved = advised(steps, smallest=99.0).advice.option().saved
    assert saved.value is not None
    assert saved.interval is not None
    smallest = saved.value + (saved.interval[1] - saved.value) / 2
    found = advised(steps, smallest).advice
    assert (found.verdict, found.more) == (CANNOT_TELL, "record 1 more minute")  # 15 s
    no_times = replace(steps, duration_ns=np.zeros(256, int))
    assert advised(no_times, smallest).advice.more == "record 768 more steps"


def test_the_other_phases_placement_is_judged_too() -> None:
    other = placement.packed(np.array([[1.0, 9, 9, 1]]), 2)  # pairs e0 and e1 otherwise
    found = advice.of_phase(
        "decode", steps_of([[8, 4, 1, 3]]), Pricing(), ranks=2, spare=(2,), smallest=1, other=other
    ).advice
    # e1 with e0 or e3; e2 with the other
    ranks = other.rank_loads(np.array([[[8.0, 4, 1, 3]]]))[0, 0]
    assert found.of_other is not None
    assert found.of_other.value == pytest.approx(100 * (1 - ranks.max() / 12))


def test_split_by_dataset_none_helps_to_make_what_it_judges() -> None:
    """Datasets 0, 2, … would save a quarter by packing; 1, 3, …, which judge, nothing: their ranks
    are even, and are again when packed."""
    steps = steps_of([[8, 4, 1, 3], [4, 4, 4, 4]])
    numbered = replace(steps, dataset=np.arange(256) % 2 + 2 * (np.arange(256) // 2 % 4))
    found = advice.of_phase(
        "decode", numbered, Pricing(), ranks=2, spare=(0,), smallest=1, by="dataset"
    ).advice
    (packed,) = found.options
    assert (found.verdict, found.judged_on, found.split) == (DOES_NOT, 4, "dataset")
    assert (packed.name, packed.saved.value) == ("packed", 0)
    by_time = advice.of_phase("decode", steps, Pricing(), ranks=2, spare=(0,), smallest=1).advice
    assert (by_time.verdict, by_time.judged_on) == (PAYS, 16)
    few = replace(numbered, dataset=np.where(numbered.dataset == 5, -1, numbered.dataset))
    refused = advice.of_phase(
        "decode", few, Pricing(), ranks=2, spare=(0,), smallest=1, by="dataset"
    ).advice
    assert refused.verdict == CANNOT_TELL
    assert refused.reason == "8 datasets are needed to split by them; the log has 7"


def test_datasets_are_known_by_the_labels_of_requests() -> None:
    """One of several starts and repeats; mixed, warm-up and without a label: none."""
    own = {
        "001": [2, 0, 0, 0, 1, 0],
        "001-s2-r2": [0, 2, 0, 0, 0, 0],
        "007": [0, 0, 2, 0, 1, 0],
        "warmup": [0, 0, 0, 2, 0, 0],
        "": [0, 0, 0, 0, 0, 2],
    }
    columns = {
        "tokens": np.full(6, 2),
        "prefill_tokens": np.zeros(6, int),
        "start_ns": np.arange(6),
        "duration_ns": np.ones(6, int),
    }
    segments = {label: np.array(tokens) for label, tokens in own.items()}
    log = GateLog(np.ones((6, 1, 2), int), columns, segments, 1, placement=(0, 1))
    assert traffic.read([log])["decode"].dataset.tolist() == [0, 0, 1, -1, -1, -1]


def test_steps_are_kept_at_even_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "MAX_STEPS", 100)

    def log(first: int, count: int) -> GateLog:
        index = np.arange(first, first + count)
        columns = {
            "tokens": np.full(count, 2),
            "prefill_tokens": (index % 10 == 0) * 2,
            "start_ns": index,
            "duration_ns": np.ones(count, int),
        }
        return GateLog(np.ones((count, 1, 2), int), columns, {}, 1, placement=(0, 1))

    found = traffic.read(log(first, 500) for first in range(0, 2000, 500))
    decode = found["decode"].start_ns
    assert len(found["prefill"]) == 100
    assert (found["prefill"].every, found["decode"].every) == (2, 32)
    assert 50 < len(decode) <= 100
    assert set(np.diff(decode)) <= {35, 36}  # 32 decode steps, and the prompts between them
    assert found["decode"].ranks == 2
