"""Rules of validity: a sound run directory breaks none, and each way to break one is named by its
rule."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from dataclasses import replace as replace_kernel
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from support import fake_nvml
from support.gate_logs import write_layers
from support.oracle import ORACLE, needs_oracle
from support.place import Place
from support.synthetic import routed, write_log

from core import cli
from core.analysis import results
from core.experiment import events
from core.experiment.events import AnyEvent, Gpu, Sampled, ServerLoad
from core.recorder.gatescope_recorder.kernel import Kernel, Tiling
from core.routing import measured_folder
from core.rundir.journal import read_events
from core.validity import verdict
from core.validity.problem import Validity, rule_name

BACKENDS = ("baseline", "all2all")
RUNS = 12


TUNED = Kernel(
    "TRITON",
    local_experts=8,
    columns=(14336, 4096),
    tilings=(Tiling(8192, 64, 128),),
    source="tuned",
    table="E=8,N=7168,device_name=NVIDIA_H200.json",
)


class Made:
    """A run directory of a real batch, grown to 12 datasets at each backend; its results and
    journal can be edited."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def edit(self, run: str, **changes: Any) -> None:
        """Change keys of a result; a dict changes keys of the dict there."""
        backend, label = run.split("/")
        file = self.path / backend / "results_json" / f"{label}.json"
        result = json.loads(file.read_text())
        for key, value in changes.items():
            result[key] = {**result[key], **value} if isinstance(value, dict) else value
        file.write_text(json.dumps(result))

    def journal(self, change: Callable[[AnyEvent], AnyEvent]) -> None:
        told = [change(event) for event in read_events(self.path)]
        (self.path / "events.jsonl").write_bytes(
            b"".join(events.encode(event) + b"\n" for event in told)
        )

    def sampled(self, change: Callable[[Sampled], Sampled]) -> None:
        self.journal(lambda event: change(event) if isinstance(event, Sampled) else event)

    def gpus(self, change: Callable[[Sampled, Gpu], Gpu]) -> None:
        self.sampled(lambda s: replace(s, gpus=[change(s, gpu) for gpu in s.gpus]))

    def configure(self, **changes: Any) -> None:
        about = json.loads((self.path / "run.json").read_text())
        about["config"]["experiment"] |= changes
        (self.path / "run.json").write_text(json.dumps(about))

    def verdict(self) -> Validity:
        return verdict.of_run_directory(self.path, results.of_run_directory(self.path)[0])


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("validity"), shuffle=True, output_len=40)
    done = place.gatescope("--batch", "--out", "made")
    assert done.returncode == 0, done.stderr
    (place.folder / "stderr.txt").write_text(done.stderr)
    return place


@pytest.fixture(scope="module")
def grown(batch: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound in every respect, whatever this machine was busy with when the batch ran."""
    made = Made(tmp_path_factory.mktemp("grown") / "run")
    shutil.copytree(batch.made, made.path)
    rng = np.random.default_rng(3)
    told: list[AnyEvent] = []
    for place, backend in enumerate(BACKENDS):
        (ready,) = (e for e in batch.told(events.BackendReady) if e.backend == backend)
        told.append(replace(ready, ran=ready.ran | {"nodes": "n1, n2"}))
        folder = made.path / backend / "results_json"
        template = (folder / "001.json").read_text()
        (folder / "002.json").unlink()
        for number in range(1, RUNS + 1):
            run = f"{backend}/{number:03d}"
            (folder / f"{number:03d}.json").write_text(template)
            tpot = 10 * float(np.exp(rng.normal(0, 0.02)))
            made.edit(
                run, mean_tpot_ms=tpot, duration=2.0, delivery_lag_ms=10.0, client={"warnings": []}
            )
            told += _run(run, 100.0 * place + number)
        cvs = {f"gates_logs_{number:02d}": 0.4 + number / 100 for number in range(1, RUNS + 1)}
        (made.path / f"{backend}_real_imbalance.json").write_text(json.dumps(cvs))
        set_kernel(made, backend, TUNED)
    (made.path / "events.jsonl").write_bytes(
        b"".join(events.encode(event) + b"\n" for event in told)
    )
    return made.path


def _run(run: str, at: float) -> list[AnyEvent]:
    """What the journal says of one run: its start, and two samples of a server and two GPUs."""
    backend = run.split("/")[0]
    hot = [
        Gpu(
            index=index,
            memory_used_gib=70,
            memory_total_gib=80,
            utilisation_pct=95,
            power_w=500,
            temperature_c=60,
            sm_clock_mhz=1980,
            throttled=[],
        )
        for index in (0, 1)
    ]
    load = ServerLoad(running=5, waiting=0, kv_cache=0.1, preemptions=0)
    seen = Sampled(
        at=at,
        backend=backend,
        run=run,
        sent=5,
        first_tokens=5,
        output_tokens=9,
        finished=0,
        server=load,
        gpus=hot,
    )
    return [events.RunStarted(at=at, run=run, requests=5), seen, replace(seen, at=at + 0.5)]


@pytest.fixture
def made(grown: Path, tmp_path: Path) -> Made:
    shutil.copytree(grown, tmp_path / "run")
    return Made(tmp_path / "run")


def test_a_sound_directory_breaks_no_rule_and_all_are_checked(made: Made) -> None:
    found = made.verdict()
    assert found.problems == []
    assert found.unchecked == []
    assert len(found.checked) == len(verdict.RULES)
    assert found.in_words() == [f"validity: {len(verdict.RULES)} checks, none failed"]


# --- each way to break a rule ---

Break = Callable[[Made], None]
ONE = "all2all/003"


def set_kernel(made: Made, backend: str, kernel: Kernel) -> None:
    """As run.json keeps what a server reported of its MoE kernel."""
    file = made.path / "run.json"
    about = json.loads(file.read_text())
    about["servers"][backend]["kernel"] = asdict(kernel)
    file.write_text(json.dumps(about))


def untuned(made: Made) -> None:
    default = Kernel("TRITON", local_experts=4, columns=(28672, 4096), source="default")
    set_kernel(made, "all2all", default)


def of(run: str = ONE, **changes: Any) -> Break:
    return lambda made: made.edit(run, **changes)


def routing(run: str = ONE, **changes: Any) -> Break:
    return of(run, measured_imbalance=changes)


def server(**changes: Any) -> Break:
    def change(sampled: Sampled) -> Sampled:
        assert sampled.server
        return (
            replace(sampled, server=replace(sampled.server, **changes))
            if sampled.run == ONE
            else sampled
        )

    return lambda made: made.sampled(change)


def ready(**changes: Any) -> Break:
    def change(event: AnyEvent) -> AnyEvent:
        is_it = isinstance(event, events.BackendReady) and event.backend == "all2all"
        return replace(event, **changes) if is_it else event

    return lambda made: made.journal(change)


def ran(**changes: str) -> Break:
    def change(event: AnyEvent) -> AnyEvent:
        if isinstance(event, events.BackendReady) and event.backend == "all2all":
            return replace(event, ran={**event.ran, **changes})
        return event

    return lambda made: made.journal(change)


def failed(made: Made) -> None:
    with open(made.path / "events.jsonl", "ab") as journal:
        journal.write(
            events.encode(events.RunFailed(run=ONE, reason="5 of 5 requests failed")) + b"\n"
        )


def alike(made: Made) -> None:
    cvs = {f"gates_logs_{n:02d}": 3**0.5 for n in range(1, RUNS + 1)}
    (made.path / "all2all_real_imbalance.json").write_text(json.dumps(cvs))


def recorder(**changes: object) -> Break:
    def change(made: Made) -> None:
        side = next((made.path / "all2all" / "gate_logs").glob("*.gatelog.json"))
        side.write_text(json.dumps({**json.loads(side.read_text()), **changes}))

    return change


def gpu(change: Callable[[int, Gpu], Gpu], backend: str = "all2all") -> Break:
    """`change` is given the run's place in its backend's order."""

    def of_sample(sampled: Sampled, seen: Gpu) -> Gpu:
        is_it = sampled.backend == backend and seen.index == 1
        return change(int(sampled.run.split("/")[1]), seen) if is_it else seen

    return lambda made: made.gpus(of_sample)


def throttled(reason: str, runs: int) -> Break:
    return gpu(lambda n, g: replace(g, throttled=[reason]) if n <= runs else g)


def clock(of_run: Callable[[int], int]) -> Break:
    return gpu(lambda n, g: replace(g, sm_clock_mhz=of_run(n)))


def heat(of_run: Callable[[int], int]) -> Break:
    return gpu(lambda n, g: replace(g, temperature_c=of_run(n)), "baseline")


def stalled(ms: float, decode_ms: float = 13.2) -> Break:
    """A token of the longest steps takes 0.02 ms more than a decode step; but one step of 3205
    tokens takes `ms`."""

    def break_it(made: Made) -> None:
        longest = {"ms": decode_ms + 100, "tokens": 5000}
        for backend in BACKENDS:
            for n in range(1, RUNS + 1):
                made.edit(f"{backend}/{n:03d}", decode_step_ms=decode_ms, longest_step=longest)
        made.edit(ONE, longest_step={"ms": ms, "tokens": 3205})

    return break_it


def on_nodes(made: Made, backend: str, node: str) -> None:
    for number in range(1, RUNS + 1):
        made.edit(f"{backend}/{number:03d}", node=node)


def apart(made: Made) -> None:
    on_nodes(made, "baseline", "n1")
    on_nodes(made, "all2all", "n2")


def resumed_elsewhere(made: Made) -> None:
    on_nodes(made, "baseline", "n1")
    on_nodes(made, "all2all", "n1")
    made.edit(ONE, node="n2")


def drifting(made: Made) -> None:
    for n in range(1, RUNS + 1):
        made.edit(f"all2all/{n:03d}", mean_tpot_ms=10 * 1.01**n)


BREAKS: dict[str, tuple[Break, str, str, list[str], str]] = {
    "another kernel": (
        ready(mismatches=["asked for moe_backend flashinfer_cutlass, ran TRITON"]),
        "as requested",
        "invalid",
        ["all2all"],
        "asked for moe_backend flashinfer_cutlass, ran TRITON",
    ),
    "a node that ran nothing": (
        ran(idle_nodes="n2 (rank 1)"),
        "idle nodes",
        "invalid",
        ["all2all"],
        "no rank of it ran on n2 (rank 1), which was allocated to it",
    ),
    "a rank without a log": (
        ran(missing_logs="dp1_pp0"),
        "missing logs",
        "invalid",
        ["all2all"],
        "there is no gate log of dp1_pp0",
    ),
    "another version": (
        ran(version="0.2"),
        "one version",
        "doubtful",
        ["all2all"],
        "it ran builtin (NumPy, CPU) 0.2; the first server was builtin",
    ),
    "a kernel without a tuned table": (
        untuned,
        "tuned kernels",
        "doubtful",
        ["all2all"],
        "no table is tuned for 4 experts with GEMMs of 28672 columns; against baseline's"
        " E=8,N=7168,device_name=NVIDIA_H200.json, the comparison is partly of tables",
    ),
    "a log that says caching": (
        ran(prefix_caching="True"),
        "prefix caching",
        "invalid",
        ["all2all"],
        "its log says that it is on",
    ),
    "cache hits": (
        server(prefix_cache_hits=512),
        "prefix caching",
        "invalid",
        ["all2all"],
        "512 prompt tokens came from the cache",
    ),
    "preempted": (
        server(preemptions=3),
        "preemptions",
        "doubtful",
        ["all2all"],
        "3 requests were preempted and computed again",
    ),
    "a time below 0": (
        of(mean_ttft_ms=-1.0),
        "possible figures",
        "doubtful",
        [ONE],
        "taken as unknown: mean_ttft_ms is -1.0",
    ),
    "not a result": (
        of(completed="five"),
        "readable results",
        "invalid",
        [ONE],
        "unreadable: not as gatescope writes it: Expected `int`",
    ),
    "a failed run": (failed, "failed runs", "doubtful", [ONE], "failed: 5 of 5 requests failed"),
    "failed requests": (
        of(completed=4, num_prompts=5, total_output_tokens=160),
        "failed requests",
        "doubtful",
        [ONE],
        "1 of 5 requests failed, and no figure counts them",
    ),
    "short answers": (
        of(total_output_tokens=190),
        "answer lengths",
        "doubtful",
        [ONE],
        "38.0 tokens per answer; 40 were requested",
    ),
    "other prompts": (
        of(total_input_tokens=500),
        "equal work",
        "invalid",
        [ONE],
        "500 prompt and 200 output tokens, at the first backend ",
    ),
    "a prompt token more": (
        lambda made: made.edit(ONE, total_input_tokens=_prompt_tokens(made) + 1),
        "equal work",
        "doubtful",
        [ONE],
        " prompt and 200 output tokens, at the first backend ",
    ),
    "short": (of(duration=0.1), "window", "doubtful", [ONE], "it lasted 0.10 s, under 0.25 s"),
    "client": (
        of(client={"warnings": ["limited by the client: busy"]}),
        "client limits",
        "doubtful",
        [ONE],
        "limited by the client: busy",
    ),
    "a late last token": (
        of(delivery_lag_ms=475.0),
        "delivery lag",
        "doubtful",
        [ONE],
        "the last token arrived 475 ms after the last engine step, 24% of the",
    ),
    "no gate log": (
        of(measured_imbalance=None, measured_imbalance_reason="no imbalance: refused"),
        "measured routing",
        "invalid",
        [ONE],
        "no imbalance: refused",
    ),
    "random tokens": (
        recorder(prompts={"alike": 900, "pairs": 32_000_000, "vocabulary": 32_000}),
        "random prompts",
        "doubtful",
        ["all2all/gate_logs"],
        "the prompts are random tokens, evenly drawn from 32000",
    ),
    "dropped steps": (
        recorder(dropped=7),
        "recorder reports",
        "doubtful",
        ["all2all/gate_logs"],
        "dp0_pp0: 7 steps were dropped",
    ),
    "lost tokens": (
        of(gate_log={"tokens_due": 1000, "tokens_seen": 989}),
        "recorded tokens",
        "invalid",
        [ONE],
        "989 of 1000 tokens are in the gate log",
    ),
    "a few lost tokens": (
        of(gate_log={"tokens_due": 1000, "tokens_seen": 990}),
        "recorded tokens",
        "doubtful",
        [ONE],
        "990 of 1000 tokens are in the gate log",
    ),
    "tokens too many": (
        of(gate_log={"tokens_due": 1000, "tokens_seen": 1001}),
        "recorded tokens",
        "doubtful",
        [ONE],
        "1001 tokens are in the gate log, 1000 were due",
    ),
    "dummy batches": (
        routing(tokens=44, steps=44, per_step_cv=3**0.5),
        "one token steps",
        "invalid",
        [ONE],
        "each of its 44 steps has a single token",
    ),
    "a counter that stands still": (
        routing(constant_loads=True),
        "constant loads",
        "invalid",
        [ONE],
        " steps have the same loads: that is not live traffic",
    ),
    "one CV": (
        alike,
        "same CV",
        "invalid",
        ["all2all"],
        "identical CV (1.732) in every one of 12 datasets",
    ),
    "wrong sums": (
        routing(violations=2, steps=44),
        "sums of loads",
        "invalid",
        [ONE],
        "in 2 of 44 steps the loads of a layer do not add up to top_k × tokens",
    ),
    "few steps": (
        routing(steps=29),
        "number of steps",
        "doubtful",
        [ONE],
        "n = 29 steps; a reliable interval of a CV needs 30",
    ),
    "a stall": (
        stalled(1670.3),
        "stalled steps",
        "doubtful",
        [ONE],
        "a step of 3205 tokens took 1,670 ms; 77 ms are usual",
    ),
    "a layer less": (
        routing(layers=3),
        "missing layers",
        "invalid",
        [ONE],
        "3 layers are in its gate log, 4 in others",
    ),
    "an idle rank": (
        routing(rank_loads=[10.0, 0.0]),
        "missing ranks",
        "doubtful",
        [ONE],
        "rank 1 of 2 got no token in the whole run",
    ),
    "heat": (
        throttled("heat (hardware)", 1),
        "throttled GPUs",
        "doubtful",
        ["all2all/gpu1"],
        "slowed down in 8% by heat (hardware) of 24 samples",
    ),
    "power": (
        throttled(events.POWER_CAP, 2),
        "throttled GPUs",
        "doubtful",
        ["all2all/gpu1"],
        "slowed down in 17% by the power limit of 24 samples",
    ),
    "falling clocks": (
        clock(lambda n: 1980 if n < 8 else 1900),
        "GPU clocks",
        "doubtful",
        ["all2all/gpu1"],
        "SM clock 1980 → 1900 MHz from its first runs to its last",
    ),
    "nodes apart": (
        apart,
        "one node",
        "invalid",
        ["all2all"],
        "it was measured on n2",
    ),
    "a resumed start elsewhere": (
        resumed_elsewhere,
        "one node",
        "doubtful",
        ["all2all"],
        "it was measured on n1, n2",
    ),
    "other clocks": (
        clock(lambda n: 1500),
        "GPU clocks",
        "doubtful",
        ["all2all/gpu1 against baseline"],
        "SM clock 1980 → 1500 MHz",
    ),
    "cold": (
        heat(lambda n: 40 if n < 5 else 60),
        "GPU temperatures",
        "doubtful",
        ["baseline/gpu1"],
        "40 → 60 °C from its first runs to its last",
    ),
    "drift": (
        drifting,
        "drift over time",
        "doubtful",
        ["all2all"],
        "TPOT moves by +6.2% after 6 of its 12 runs, p = ",
    ),
}


def _prompt_tokens(made: Made) -> int:
    file = made.path / "baseline" / "results_json" / "003.json"
    return int(json.loads(file.read_text())["total_input_tokens"])


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_directory_is_named_by_its_rule(made: Made, name: str) -> None:
    break_it, rule, severity, where, sentence = BREAKS[name]
    break_it(made)
    found = {problem.rule: problem for problem in made.verdict().problems}
    problem = found[rule]
    assert (problem.severity, problem.where) == (severity, where)
    assert sentence in problem.sentence
    also = {"equal work"} if rule in ("failed requests", "answer lengths") else set()
    assert found.keys() == {rule} | also


def test_every_rule_is_broken_once() -> None:
    assert {rule for _, rule, *_ in BREAKS.values()} == {rule_name(rule) for rule in verdict.RULES}


# --- what is no problem ---


def test_two_kernels_without_tables_are_compared_alike(made: Made) -> None:
    for backend in BACKENDS:
        set_kernel(made, backend, replace_kernel(TUNED, source="default", table=""))
    assert made.verdict().problems == []


def test_kernels_that_publish_no_tiling_are_not_judged(made: Made) -> None:
    set_kernel(made, "all2all", Kernel("FLASHINFER_CUTLASS"))
    assert made.verdict().unchecked == ["tuned kernels"]


def test_a_power_limit_that_is_touched_now_and_then_is_none(made: Made) -> None:
    throttled(events.POWER_CAP, 1)(made)
    assert made.verdict().problems == []


@pytest.mark.parametrize(
    ("decode_ms", "limit_ms"),
    [
        (13.2, 327.3),  # 13.2 + 0.02 × 3205 + 250
        (135.9, 600.0),  # 3 × (135.9 + 0.02 × 3205)
    ],
)
def test_a_step_stalls_from_three_times_the_usual_and_a_quarter_of_a_second_on(
    made: Made, decode_ms: float, limit_ms: float
) -> None:
    stalled(limit_ms - 0.1, decode_ms)(made)
    assert made.verdict().problems == []
    stalled(limit_ms + 0.1, decode_ms)(made)
    assert [problem.rule for problem in made.verdict().problems] == ["stalled steps"]


@pytest.mark.parametrize(("duration", "limit_ms"), [(2.0, 50.0), (10.0, 200.0)])
def test_a_token_is_late_from_two_percent_of_the_run_and_50_ms_on(
    made: Made, duration: float, limit_ms: float
) -> None:
    made.edit(ONE, duration=duration, delivery_lag_ms=limit_ms)
    assert made.verdict().problems == []
    made.edit(ONE, delivery_lag_ms=limit_ms + 0.1)
    assert [problem.rule for problem in made.verdict().problems] == ["delivery lag"]


def test_of_four_runs_nobody_knows_what_is_usual(made: Made) -> None:
    stalled(1670.3)(made)
    for n in (1, 2, *range(4, 10)):
        (made.path / "all2all" / "results_json" / f"{n:03d}.json").unlink()
    assert "stalled steps" not in {problem.rule for problem in made.verdict().problems}


def test_an_idle_gpu_says_nothing(made: Made) -> None:
    made.gpus(
        lambda s, g: (
            replace(g, utilisation_pct=0, sm_clock_mhz=345, temperature_c=30) if g.index else g
        )
    )
    assert made.verdict().problems == []


def test_runs_of_one_prompt_token_have_one_token_steps(made: Made) -> None:
    for backend in BACKENDS:
        made.edit(
            f"{backend}/003", total_input_tokens=5, measured_imbalance={"tokens": 44, "steps": 44}
        )
    assert made.verdict().problems == []


def test_tokens_of_failed_requests_were_computed_too(made: Made) -> None:
    for backend in BACKENDS:
        changes = {
            "completed": 4,
            "total_output_tokens": 160,
            "gate_log": {"tokens_due": 1000, "tokens_seen": 1200},
        }
        made.edit(f"{backend}/003", **changes)
    assert {problem.rule for problem in made.verdict().problems} == {"failed requests"}


def test_forced_routing_may_be_constant_and_leave_a_rank_idle(made: Made) -> None:
    for backend in BACKENDS:
        folder = made.path / backend / "results_json"
        shutil.copy(folder / "003.json", folder / "003~hot-rank~1.json")
        made.edit(
            f"{backend}/003~hot-rank~1",
            measured_imbalance={"constant_loads": True, "rank_loads": [9.0, 0.0]},
        )
    assert made.verdict().problems == []


def test_repeats_that_a_server_routes_alike_are_no_counter_that_stands_still(made: Made) -> None:
    cvs = {f"gates_logs_{n:02d}{r}": n / 10 for n in (1, 2) for r in ("", "-r2", "-r3", "-r4")}
    (made.path / "all2all_real_imbalance.json").write_text(json.dumps(cvs))
    assert made.verdict().problems == []
    cvs = dict.fromkeys(cvs, 0.4) | {"gates_logs_03": 0.4}
    (made.path / "all2all_real_imbalance.json").write_text(json.dumps(cvs))
    assert [problem.rule for problem in made.verdict().problems] == ["same CV"]


def test_an_order_that_is_the_datasets_own_is_not_judged(made: Made) -> None:
    drifting(made)
    made.configure(shuffle=False)
    assert made.verdict().problems == []
    assert made.verdict().unchecked == ["drift over time"]


def test_a_drift_is_seen_within_repeats_whatever_the_datasets_cost(made: Made) -> None:
    """A second pass over datasets of very different TPOT is 10 % slower."""
    made.configure(shuffle=False, repeats=2)
    folder = made.path / "all2all" / "results_json"
    for n in range(1, RUNS + 1):
        shutil.copy(folder / f"{n:03d}.json", folder / f"{n:03d}-r2.json")
        made.edit(f"all2all/{n:03d}", mean_tpot_ms=float(n))
        made.edit(f"all2all/{n:03d}-r2", mean_tpot_ms=1.1 * n)
    with open(made.path / "events.jsonl", "ab") as journal:
        for n in range(1, RUNS + 1):
            event = events.RunStarted(at=200.0 + n, run=f"all2all/{n:03d}-r2", requests=5)
            journal.write(events.encode(event) + b"\n")
    (problem,) = made.verdict().problems
    assert (problem.rule, problem.where) == ("drift over time", ["all2all"])
    assert "take starts = 2 or more" in problem.remedy
    made.configure(interleave=True)
    assert "starts" not in made.verdict().problems[0].in_words()


def test_what_a_restart_moves_is_no_drift(made: Made) -> None:
    """The second start of a server, of half of its forty runs, is 10 % slower throughout."""
    made.configure(starts=2, split=True)
    rng = np.random.default_rng(5)
    folder = made.path / "all2all" / "results_json"
    with open(made.path / "events.jsonl", "ab") as journal:
        for n in range(1, 41):
            (folder / f"{n:03d}.json").write_bytes((folder / "001.json").read_bytes())
            start = 1 if n <= 20 else 2
            tpot = 10 * float(np.exp(rng.normal(0, 0.01))) * (1.1 if start == 2 else 1.0)
            made.edit(f"all2all/{n:03d}", mean_tpot_ms=tpot, start=start)
            event = events.RunStarted(at=200.0 + n, run=f"all2all/{n:03d}", requests=5)
            journal.write(events.encode(event) + b"\n")
    assert "drift over time" not in {problem.rule for problem in made.verdict().problems}
    for n in range(1, 41):
        made.edit(f"all2all/{n:03d}", start=1)
    (drift,) = (p for p in made.verdict().problems if p.rule == "drift over time")
    assert "after 20 of its 40 runs" in drift.sentence


def test_a_step_late_in_a_backends_runs_is_seen_though_datasets_cost_what_their_tokens_do(
    made: Made,
) -> None:
    """Forty runs whose TPOT goes with their tokens; the last ten take half as long again."""
    rng = np.random.default_rng(5)
    folder = made.path / "all2all" / "results_json"
    with open(made.path / "events.jsonl", "ab") as journal:
        for n in range(1, 41):
            (folder / f"{n:03d}.json").write_bytes((folder / "001.json").read_bytes())
            tokens = int(rng.integers(1000, 9000))
            tpot = tokens / 400 * float(np.exp(rng.normal(0, 0.05))) * (1.5 if n > 30 else 1.0)
            made.edit(f"all2all/{n:03d}", mean_tpot_ms=tpot, total_input_tokens=tokens)
            journal.write(
                events.encode(events.RunStarted(at=200.0 + n, run=f"all2all/{n:03d}", requests=5))
                + b"\n"
            )
    (drift,) = (problem for problem in made.verdict().problems if problem.rule == "drift over time")
    assert "after 30 of its 40 runs" in drift.sentence


def test_runs_without_a_drift_are_seldom_suspected(made: Made) -> None:
    """None of thirty shuffles of the same twelve values at two backends, where 0.002 each are
    expected."""
    rng = np.random.default_rng(7)
    values = np.exp(rng.normal(2, 0.2, RUNS))
    for _ in range(30):
        for backend in BACKENDS:
            for n, tpot in enumerate(rng.permutation(values), 1):
                made.edit(f"{backend}/{n:03d}", mean_tpot_ms=float(tpot))
        assert made.verdict().problems == []


def test_problems_of_many_runs_are_told_once(made: Made) -> None:
    for backend in BACKENDS:
        for n in (2, 3, 4):
            made.edit(f"{backend}/{n:03d}", duration=0.1)
    made.edit("all2all/009", measured_imbalance={"violations": 1})
    invalid, doubtful = made.verdict().in_words()[1:]
    assert invalid.startswith("  INVALID sums of loads: all2all/009: in 1 of ")
    assert doubtful.startswith(
        "  window: baseline/002 and 2 more, all2all/002 and 2 more: it lasted 0.10 s"
    )


def test_what_is_told_of_one_of_several_runs_names_it(made: Made) -> None:
    made.edit("baseline/002", duration=0.1)
    made.edit("baseline/003", duration=0.1)
    (alike,) = made.verdict().in_words()[1:]
    made.edit("baseline/003", duration=0.2)
    (differing,) = made.verdict().in_words()[1:]
    assert "(baseline/002)" not in alike
    assert "window: baseline/002 and 1 more: it lasted 0.10 s" in differing
    assert "(baseline/002);" in differing


# --- gate logs alone, upstream's among them ---


def dummy_batches(folder: Path, layers: int = 32, steps: int = 10) -> Path:
    """What a data-parallel rank without requests leaves behind: one token a step, routed alike in
    every step."""
    experts = np.random.default_rng(0).permuted(np.tile(np.arange(8), (layers, 1)), axis=1)[:, :2]
    loads = np.zeros((layers, steps, 8))
    np.put_along_axis(loads, np.repeat(experts[:, None], steps, axis=1), 1.0, axis=2)
    return write_layers(folder, loads.tolist(), [1] * steps)


class TestGateLogs:
    def test_upstreams_dummy_batches_are_caught(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("gates_logs_01", "gates_logs_03"):
            dummy_batches(tmp_path / "logs" / name)
        arguments = ["imbalance", str(tmp_path / "logs")]
        assert cli.main(arguments) == 0
        told = capsys.readouterr().err
        assert (
            "INVALID one token steps: gates_logs_01 and 1 more:"
            " each of its 10 steps has a single token" in told
        )
        assert "regardless of the traffic (here 1.732)" in told
        assert (
            "INVALID constant loads: gates_logs_01 and 1 more: all 10 steps have the same loads"
            in told
        )
        assert cli.main([*arguments, "--strict", "--json"]) == 1
        kept = json.loads(capsys.readouterr().out)["gates_logs_03"]["problems"]
        assert kept == [
            "invalid: one token steps",
            "invalid: constant loads",
            "doubtful: number of steps",
        ]

    def test_a_plot_of_upstreams_mappings_says_what_is_wrong_with_them(
        self, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        mapping = tmp_path / "all2all.json"
        mapping.write_text(json.dumps({f"gates_logs_{n:02d}": 3**0.5 for n in range(1, RUNS + 1)}))
        flags = ["--baseline-imbalance", str(grown / "baseline_real_imbalance.json")]
        for backend in BACKENDS:
            flags += [f"--{backend}-results", str(grown / backend / "results_json")]
        assert (
            cli.main(
                ["plot", *flags, "--all2all-imbalance", str(mapping), "-o", str(tmp_path / "a.png")]
            )
            == 0
        )
        told = capsys.readouterr().err
        assert (
            "INVALID same CV: all2all: identical CV (1.732) in every one of 12 datasets:"
            " traffic cannot be the cause" in told
        )

    @needs_oracle
    def test_upstreams_own_logs_are_only_too_short(self) -> None:
        folder = ORACLE / "gate_logs"
        found = verdict.of_gate_logs(folder, measured_folder.measure_folder(folder)[0])
        (problem,) = found.problems
        assert (problem.rule, problem.severity, len(problem.where)) == (
            "number of steps",
            "doubtful",
            15,
        )
        assert problem.sentence.startswith("n = 10 steps; a reliable interval of a CV needs 30")
        assert set(found.checked) >= {
            "one token steps",
            "constant loads",
            "sums of loads",
            "missing layers",
        }

    def test_a_missing_layer_file_is_named(self, tmp_path: Path) -> None:
        loads = (
            routed(np.random.default_rng(1), [20] * 40, 6, np.ones(8)).transpose(1, 0, 2).tolist()
        )
        folder = write_layers(tmp_path / "logs", loads, [20] * 40)
        (folder / "gate_logs_3.json").unlink()
        (problem,) = verdict.of_gate_logs(
            folder, measured_folder.measure_folder(folder)[0]
        ).problems
        assert (problem.rule, problem.sentence) == ("missing layers", "there is no log of layer 3")

    def test_layers_that_are_moe_every_second_time_have_no_gap(self, tmp_path: Path) -> None:
        loads = (
            routed(np.random.default_rng(1), [20] * 40, 3, np.ones(8)).transpose(1, 0, 2).tolist()
        )
        folder = write_layers(tmp_path / "logs", loads, [20] * 40)
        (folder / "gate_logs_2.json").rename(folder / "gate_logs_5.json")
        (folder / "gate_logs_1.json").rename(folder / "gate_logs_3.json")
        (folder / "gate_logs_0.json").rename(folder / "gate_logs_1.json")
        assert (
            verdict.of_gate_logs(folder, measured_folder.measure_folder(folder)[0]).problems == []
        )

    def test_our_own_log_of_wrong_counts(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        loads = routed(np.random.default_rng(1), [20] * 40, 2, np.ones(8))
        loads[7, 1, 0] += 1
        write_log(tmp_path / "dp0_pp0.gatelog", loads)
        cli.main(["imbalance", str(tmp_path)])
        assert "INVALID sums of loads: gates_logs_001: in 1 of 40 steps" in capsys.readouterr().err


# --- the whole way ---


class TestBatch:
    def test_says_validity_before_its_findings(self, batch: Place) -> None:
        """Only what this machine's other work does to times may be wrong."""
        told = (batch.folder / "stderr.txt").read_text()
        assert told.index("validity: ") < told.index("too few to say")
        kept = json.loads((batch.made / "findings.json").read_bytes())["validity"]
        assert {problem["rule"] for problem in kept["problems"]} <= {"client limits", "window"}
        assert "drift over time" in kept["unchecked"]
        assert {"as requested", "recorded tokens", "one token steps", "equal work"} <= {
            *kept["checked"]
        }

    def test_unequal_work_and_a_hot_gpu_end_a_strict_batch_with_1(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second backend refuses the longest prompt; the driver says that its GPU is hot."""
        fake_nvml.install(tmp_path, monkeypatch, fake_nvml.H200)
        place = Place(tmp_path, strict=True, max_error_rate=0.5, output_len=40)
        place.write_dataset(1, ["short", "x" * 300])
        short = 'expert_parallel = true\nextra_args = ["--max-model-len", "200"]'
        (tmp_path / "experiments.toml").write_text(
            place.config.replace("expert_parallel = true", short)
        )
        done = place.gatescope("--batch", "--out", "made", "--only", "001")
        assert done.returncode == 1, done.stderr
        assert place.phases() == dict.fromkeys(("baseline/001", "all2all/001"), "done")
        assert "INVALID equal work: all2all/001: " in done.stderr
        assert "failed requests: all2all/001: 1 of 2 requests failed" in done.stderr
        assert "throttled GPUs: baseline/gpu0" in done.stderr
        assert "! strict = true, and results are invalid" in done.stderr
        strict = place.gatescope("report", "made", "--strict")
        assert strict.returncode == 1
        assert "INVALID equal work" in strict.stderr
        text = (place.made / "report.md").read_text()
        assert text.index("## Validity") < text.index("## Findings")
        assert "- INVALID equal work: all2all/001: " in text
