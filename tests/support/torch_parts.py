"""Checks of the recorder's PyTorch parts, run in the vLLM environment:

    python torch_parts.py RECORDER_DIR TMP

It prints one line per check; an AssertionError ends it. Fakes replace vLLM's objects where they
differ by version.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
TMP = Path(sys.argv[2])

from gatescope_recorder import histogram, routers, tiling
from gatescope_recorder.about import About
from gatescope_recorder.capture import Capture
from gatescope_recorder.dose import Course
from gatescope_recorder.eplb import MapLog
from gatescope_recorder.forcing import BUFFERS, Forcing, Tables
from gatescope_recorder.gatelog import Header
from gatescope_recorder.limits import Limits
from gatescope_recorder.order import Order
from gatescope_recorder.place import Place, RefusedError
from gatescope_recorder.recorder import Recorder
from gatescope_recorder.worker import Attachment

CPU = torch.device("cpu")
HERE = Place(0, 1, 0, 1, 0, 1)
EXPERTS = 8


class Router20:
    """As in vLLM 0.20 and newer."""

    def __init__(self) -> None:
        self.top_k, self.global_num_experts, self.capture_fn = 2, EXPERTS, None

    def set_capture_fn(self, capture: Any) -> None:
        self.capture_fn = capture

    def route(self, ids: torch.Tensor) -> torch.Tensor:
        if self.capture_fn is not None:
            self.capture_fn(ids)
        return ids


class Router15:
    """As in vLLM 0.15: no capture slot."""

    def __init__(self) -> None:
        self.top_k, self.global_num_experts = 2, EXPERTS

    def _compute_routing(self, ids: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, ids

    def route(self, ids: torch.Tensor) -> torch.Tensor:
        return self._compute_routing(ids)[1]


class UnquantizedFusedMoEMethod:
    is_monolithic = False


class Layer11(torch.nn.Module):  # type: ignore[misc]
    """As in vLLM 0.11: the layer's own static function routes, and returns three values."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k, self.global_num_experts, self.quant_method = (
            2,
            EXPERTS,
            UnquantizedFusedMoEMethod(),
        )

    @staticmethod
    def select_experts(ids: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        return None, ids, None

    def route(self, ids: torch.Tensor) -> torch.Tensor:
        return self.select_experts(ids)[1]


def moe(router: Any, monolithic: bool = False) -> torch.nn.Module:
    module = torch.nn.Module()
    module.router = router
    module.quant_method = types.SimpleNamespace(is_monolithic=monolithic)
    return module


def model_of(*layers: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.ModuleList(layers)


def chosen(tokens: int, seed: int) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    return torch.tensor(
        np.array([draw.choice(EXPERTS, 2, replace=False) for _ in range(tokens)]), dtype=torch.int32
    )


def counted(ids: torch.Tensor) -> list[int]:
    return list(np.bincount(ids.numpy().ravel(), minlength=EXPERTS).tolist())


def header(layers: int) -> Any:
    return Header("vllm", "fake", layers, EXPERTS, 2)


def scheduled(tokens: int, request: str = "seg.001.0", new: bool = True) -> Any:
    return types.SimpleNamespace(
        scheduled_new_reqs=[
            types.SimpleNamespace(
                req_id=request, prompt_token_ids=[0] * tokens, num_computed_tokens=0
            )
        ]
        if new
        else [],
        scheduled_cached_reqs=types.SimpleNamespace(req_ids=[], num_computed_tokens=[]),
        num_scheduled_tokens={request: tokens} if tokens else {},
        total_num_scheduled_tokens=tokens,
        finished_req_ids=set(),
    )


def sidecar(path: Path) -> Any:
    return json.loads(path.with_name(path.name + ".json").read_text())


def check_every_version_is_tapped() -> None:
    for router, layer in (
        (r := Router20(), moe(r)),
        (r15 := Router15(), moe(r15)),
        (layer11 := Layer11(), layer11),
    ):
        found = routers.find(model_of(layer))
        capture = Capture(1, 16, 2, EXPERTS, CPU)
        routers.tap(found[0], capture.tap(0))
        ids = chosen(5, 1)
        capture.warming_up = False
        assert router.route(ids) is ids
        assert capture.ids[0, :5].tolist() == ids.tolist(), type(router)


def check_vllms_own_capturer_keeps_its_slot_and_ours_too() -> None:
    router = Router20()
    theirs: list[torch.Tensor] = []
    (layer,) = routers.find(model_of(moe(router)))
    capture = Capture(1, 16, 2, EXPERTS, CPU)
    capture.warming_up = False
    tap = capture.tap(0)
    routers.tap(layer, tap)
    router.set_capture_fn(theirs.append)  # as at KV cache initialisation
    routers.retap(layer, tap)
    routers.retap(layer, tap)
    ids = chosen(3, 2)
    router.route(ids)
    assert len(theirs) == 1
    assert capture.ids[0, :3].tolist() == ids.tolist()


def refusal(model: torch.nn.Module) -> str:
    try:
        routers.find(model)
    except RefusedError as error:
        return str(error)
    return ""


def check_what_cannot_be_seen_is_refused() -> None:
    for model, reason in (
        (model_of(moe(Router20(), monolithic=True)), "routes inside"),
        (model_of(torch.nn.Linear(2, 2)), "no router was found"),
    ):
        assert reason in refusal(model)


def check_histograms_agree_with_bincount_and_reset_what_they_read() -> None:
    for tokens in (1, 37, 700):
        ids = torch.stack([chosen(tokens + 3, seed) for seed in (3, 4)])
        ids[1, 0, 1] = -1
        want = [[*counted(ids[0, :tokens]), 0], [*counted(ids[1, :tokens].clamp(min=0)), 1]]
        want[1][0] -= 1
        kinds = {"plain": histogram.on(ids.clone(), EXPERTS)}
        rows = ids.clone()
        out = torch.zeros(2, EXPERTS + 1, dtype=torch.int32)
        histogram.on(rows, EXPERTS)(out, tokens)
        assert out.tolist() == want, kinds
        assert (rows[:, :tokens] == EXPERTS).all()
        assert (rows[:, tokens:] == ids[:, tokens:]).all()
        check_triton(ids.clone(), tokens, want)


def check_triton(rows: torch.Tensor, tokens: int, want: list[list[int]]) -> None:
    """The same in Triton's interpreter, which needs no GPU."""
    from gatescope_recorder import triton_histogram

    before = rows.clone()
    counts = torch.full((2, EXPERTS + 1), 9, dtype=torch.int32)
    triton_histogram.count(rows, counts, tokens)
    assert counts.tolist() == want
    assert (rows[:, :tokens] == EXPERTS).all()
    assert (rows[:, tokens:] == before[:, tokens:]).all()


def recorder_of(layers: int, name: str) -> tuple[Any, Any, Path]:
    path = TMP / f"{name}.gatelog"
    capture = Capture(layers, 64, 2, EXPERTS, CPU)
    return Recorder(path, header(layers), capture), capture, path


def run_step(recorder: Any, capture: Any, ids: list[torch.Tensor], new: bool = True) -> None:
    output = scheduled(len(ids[0]), new=new)
    slot = recorder.begin(output)
    for layer, rows in enumerate(ids):
        capture.tap(layer)(rows)
    recorder.end(output, slot)


def check_steps_dummies_and_padding() -> None:
    recorder, capture, path = recorder_of(2, "steps")
    capture.tap(0)(chosen(9, 5))  # warm-up
    recorder.capture.warming_up = False
    recorder.start()
    padded = [torch.cat([chosen(4, seed), chosen(2, 99)]) for seed in (6, 7)]
    output = scheduled(4)
    slot = recorder.begin(output)
    for layer in (0, 1):
        capture.tap(layer)(padded[layer])
    recorder.end(output, slot)
    recorder.dummy()
    recorder.end(scheduled(0), recorder.begin(scheduled(0)))
    run_step(recorder, capture, [chosen(3, 8), chosen(3, 9)])
    recorder.close()
    side = sidecar(path)
    assert (side["closed"], side["steps"], side["tokens"], side["idle"], side["violations"]) == (
        True,
        3,
        7,
        1,
        0,
    ), side
    print("log", path)


def check_a_router_that_is_not_called_is_a_violation_and_not_the_last_steps_choice() -> None:
    recorder, capture, path = recorder_of(2, "silent")
    capture.warming_up = False
    recorder.start()
    run_step(recorder, capture, [chosen(3, 8), chosen(3, 9)])
    output = scheduled(3)
    slot = recorder.begin(output)
    capture.tap(0)(chosen(3, 10))  # layer 1 stays silent
    recorder.end(output, slot)
    recorder.close()
    assert (sidecar(path)["violations"], sidecar(path)["silent"]) == (1, ["layer 1"])


def check_one_step_in_three_is_recorded_and_a_silent_router_still_seen() -> None:
    path = TMP / "sampled.gatelog"
    capture = Capture(1, 64, 2, EXPERTS, CPU)
    recorder = Recorder(path, replace(header(1), sample=3), capture)
    capture.warming_up = False
    recorder.start()
    for index in range(6):
        run_step(recorder, capture, [chosen(5, index)], new=not index)
    recorder.dummy()  # 6, recorded
    recorder.dummy()  # 7
    recorder.end(scheduled(0), recorder.begin(scheduled(0)))
    run_step(recorder, capture, [chosen(5, 8)], new=False)
    output = scheduled(5, new=False)
    recorder.end(output, recorder.begin(output))  # 9, and the router stays silent
    recorder.close()
    side = sidecar(path)
    assert (side["steps"], side["idle"], side["dropped"], side["violations"]) == (4, 1, 0, 1), side


def check_a_full_disk_ends_the_recording_and_not_the_engine() -> None:
    recorder, capture, path = recorder_of(1, "disk")
    capture.warming_up = False
    recorder.start()
    run_step(recorder, capture, [chosen(3, 8)])
    wait_until(lambda: sidecar(path)["steps"] == 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 9, limits[1]))
    run_step(recorder, capture, [chosen(3, 9)], new=False)
    wait_until(lambda: not recorder.is_on)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    recorder._thread.join()
    assert "File too large" in sidecar(path)["disabled"], sidecar(path)
    run_step(recorder, capture, [chosen(3, 9)], new=False)  # continues as if there were no recorder


def check_a_removed_folder_ends_the_recording_and_not_the_engine() -> None:
    recorder, capture, path = recorder_of(1, "gone/gone")
    capture.warming_up = False
    recorder.start()
    shutil.rmtree(path.parent)
    run_step(recorder, capture, [chosen(3, 8)])
    wait_until(lambda: not recorder.is_on)
    recorder._thread.join()
    run_step(recorder, capture, [chosen(3, 9)], new=False)


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_a_full_ring_drops_and_counts_and_never_waits() -> None:
    recorder, capture, _ = recorder_of(1, "full")
    capture.warming_up = False
    recorder._ring._free = type(recorder._ring._free)(list(recorder._ring._free)[:2])
    recorder.start()
    recorder._stop.set()
    recorder._thread.join()  # a writer that has fallen behind for good
    for seed in range(5):
        run_step(recorder, capture, [chosen(2, seed)], new=False)
    assert recorder.dropped == 3


class FakeEvent:
    """A GPU's event by a clock a tenth faster than the host's; it is done once it was recorded."""

    def __init__(self) -> None:
        self.at_ms = 0.0

    def record(self) -> None:
        self.at_ms = time.perf_counter_ns() * 1.1 / 1e6

    def query(self) -> bool:
        return self.at_ms > 0

    def elapsed_time(self, later: FakeEvent) -> float:
        return later.at_ms - self.at_ms


def check_a_gpus_events_are_placed_on_the_hosts_clock() -> None:
    recorder, capture, path = recorder_of(1, "events")
    slots = list(recorder._ring._free)[:4]
    for slot in slots:
        slot.events = (FakeEvent(), FakeEvent(), FakeEvent())
    recorder._ring._free = type(recorder._ring._free)(slots)
    capture.warming_up = False
    recorder.start()
    launched = []
    for seed in range(6):
        launched.append(time.perf_counter_ns())
        run_step(recorder, capture, [chosen(2, seed)], new=False)
        time.sleep(0.06)  # the writer frees the slot before
    recorder.close()
    assert (recorder.dropped, sidecar(path)["steps"]) == (0, 6)
    print("launched", *launched)


def check_a_failing_tap_ends_the_recording_and_not_the_engine() -> None:
    recorder, capture, path = recorder_of(1, "failing")
    capture.warming_up = False
    recorder.start()
    capture.tap(0)(torch.zeros(2, 7, dtype=torch.int32))  # seven columns where two belong
    deadline = time.monotonic() + 10
    while recorder.is_on and time.monotonic() < deadline:
        time.sleep(0.01)
    recorder._thread.join()
    assert "a tap failed: layer 0" in sidecar(path)["disabled"]
    run_step(recorder, capture, [chosen(2, 1)])  # continues as if there were no recorder


def check_a_failing_recorder_does_not_reach_the_worker() -> None:
    worker = types.SimpleNamespace(get_model=lambda: 1 / 0, device=CPU)
    config = types.SimpleNamespace(parallel_config=types.SimpleNamespace())
    attachment = Attachment(
        worker, config, TMP / "broken", HERE, About(TMP / "broken", "a"), Limits()
    )
    attachment.guard(attachment.bind)
    attachment.guard(attachment.rebind)
    attachment.guard(attachment.start)
    assert "ZeroDivisionError" in sidecar(TMP / "broken" / "dp0_pp0.gatelog")["refused"]


def check_eplb_maps_are_logged_when_they_change() -> None:
    router = Router20()
    (layer,) = routers.find(model_of(moe(router)))
    log, path = MapLog([layer]), TMP / "dp0_pp0.eplb.jsonl"
    log.poll(0, path)  # before vLLM has set the state
    assert not path.exists()
    state = types.SimpleNamespace(logical_to_physical_map=torch.tensor([[0, 2], [1, -1]]))
    router.eplb_state = state  # type: ignore[attr-defined]
    for index, moved in ((5, 2), (6, 2), (9, 3)):
        state.logical_to_physical_map[0, 1] = moved
        log.poll(index, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["index"], line["logical_to_physical"]) for line in lines] == [
        (5, [[[0, 2], [1, -1]]]),
        (9, [[[0, 3], [1, -1]]]),
    ]


def check_rows_of_other_ranks_are_noticed() -> None:
    capture = Capture(1, 16, 2, EXPERTS, CPU)
    capture.rows = [(8, [8, 8]), (16, [8, 8])]
    assert "saw 16 rows where this rank's batch has 8" in capture.foreign_rows(1)
    capture.rows = [(8, [8, 8])]
    assert capture.foreign_rows(0) == ""


LAYERS, MOST = 3, 64
ORDER = Order(("hot-rank~1", "rotating~1.5", "spread~0"), ranks=2, rotate_steps=2)


def forced_model() -> tuple[Any, list[Any]]:
    """Tables that wrap LAYERS routers; and the routers."""
    tables = Tables(Course(ORDER, EXPERTS, 2, LAYERS, MOST), (LAYERS, MOST, 2), CPU)
    made = [Router15() for _ in range(LAYERS)]
    for number, router in enumerate(made):
        router._compute_routing = tables.wrap(number, router._compute_routing)  # type: ignore[method-assign]
    return tables, made


def from_pool(course: Any, cut: Any, layer: int, tokens: int) -> Any:
    start = cut.start + layer * course.stagger
    return (course.pools[cut.dose][start : start + tokens] + cut.shift) % EXPERTS


def check_forced_rows_come_from_the_pool_and_all_others_stay_bit_for_bit() -> None:
    tables, made = forced_model()
    twin = Course(ORDER, EXPERTS, 2, LAYERS, MOST)
    steps = [
        ({""}, 5),
        ({"hot-rank~1"}, 7),
        ({"rotating~1.5"}, 4),
        ({"rotating~1.5"}, 64),
        ({"hot-rank~1", ""}, 6),
    ]
    for kind in (torch.int32, torch.int64):
        for doses, tokens in steps:
            tables.fill(doses, tokens)
            cut = twin.next(doses, tokens)
            padding = torch.full((1, 2), -1)
            for layer, router in enumerate(made):
                ids = torch.cat([chosen(tokens, 20 + layer), padding]).to(kind)
                got = router.route(ids)
                assert got.dtype == kind
                assert torch.equal(got[tokens:], ids[tokens:])
                want = ids[:tokens].numpy() if cut is None else from_pool(twin, cut, layer, tokens)
                assert np.array_equal(got[:tokens].numpy(), want), (doses, layer)
    assert tables.error == ""
    assert twin.next({"rotating~1.5"}, 1).shift == 2 * (10 // 2) % EXPERTS


def check_padding_rows_of_a_forced_step_repeat_its_own() -> None:
    """They choose no other expert. A natural step's rows stay."""
    course = Course(ORDER, EXPERTS, 2, LAYERS, MOST)
    tables = Tables(course, (LAYERS, MOST, 2), CPU, graphs=[4, 8, 16])
    route = tables.wrap(1, Router15()._compute_routing)
    ids = chosen(20, 4)
    for tokens, end in ((3, 4), (5, 8), (9, 16), (16, 16), (17, 17)):
        tables.fill({"hot-rank~1"}, tokens)
        got = route(ids)[1]
        assert torch.equal(got[tokens:end], got[: end - tokens]), tokens
        assert torch.equal(got[end:], ids[end:])
        tables.fill({""}, tokens)
        assert torch.equal(route(ids)[1], ids)


def check_forcing_survives_compilation() -> None:
    """As on a CPU, where the router is traced: tensors decide what is forced, never the trace."""
    tables, made = forced_model()
    compiled = torch.compile(
        made[1]._compute_routing, fullgraph=True, dynamic=True, backend="eager"
    )
    for doses in ({""}, {"hot-rank~1"}, {""}, {"spread~0"}):
        tables.fill(doses, 9)
        ids = chosen(11, 3)
        assert torch.equal(compiled(ids)[1], made[1]._compute_routing(ids)[1])
        assert torch.equal(compiled(ids)[1], ids) == (doses == {""})


def check_a_choice_of_another_width_is_noticed_and_left_alone() -> None:
    tables, made = forced_model()
    ids = torch.zeros(4, 7, dtype=torch.int32)
    assert made[2].route(ids) is ids
    assert tables.error.startswith("layer 2: RuntimeError")


def check_replayed_rows_have_the_recorded_loads_and_all_others_stay() -> None:
    """Three recorded steps of 5 tokens, all at experts 0 and 3 in layer 0; then a natural step."""
    folder = TMP / "replay"
    folder.mkdir()
    loads = np.full((3, LAYERS, EXPERTS), 0, np.uint16)
    loads[:, :, 1:3] = 5
    loads[:, 0] = [5, 0, 0, 5, 0, 0, 0, 0]
    np.save(folder / "001.decode.npy", loads)
    about = {"layers": LAYERS, "experts": EXPERTS, "top_k": 2}
    (folder / "about.json").write_text(json.dumps(about))
    order = Order((), replays=("replay~001",), recording=str(folder))
    tables = Tables(Course(order, EXPERTS, 2, LAYERS, MOST), (LAYERS, MOST, 2), CPU)
    routers = [Router15() for _ in range(LAYERS)]
    wrapped = [tables.wrap(n, router._compute_routing) for n, router in enumerate(routers)]
    for step in range(2 * BUFFERS):  # the buffers go round
        tables.fill({"replay~001"}, 5, "001~replay~001", "decode")
        for layer, route in enumerate(wrapped):
            ids = torch.cat([chosen(5, 20 + layer), torch.full((1, 2), -1)])
            got = route(ids)[1]
            assert torch.equal(got[5:], ids[5:])
            counts = np.bincount(got[:5].flatten().numpy(), minlength=EXPERTS)
            assert np.array_equal(counts, loads[step % 3, layer]), (step, layer)
    for doses, phase in (({"replay~001"}, "prefill"), ({""}, "decode")):
        tables.fill(doses, 5, "001~replay~001", phase)
        ids = chosen(5, 3)
        assert torch.equal(wrapped[0](ids)[1], ids)


def check_what_cannot_be_forced_is_refused() -> None:
    config = types.SimpleNamespace(
        parallel_config=types.SimpleNamespace(),
        scheduler_config=types.SimpleNamespace(max_num_batched_tokens=MOST),
        compilation_config=types.SimpleNamespace(),
        additional_config={},
    )
    for model, order, reason in (
        (model_of(Layer11()), ORDER, "no _compute_routing; use 0.15 or newer"),
        (model_of(moe(Router15())), Order(("hot-rank~1.8",), 2), "1.732 is the most"),
        (model_of(moe(Router15())), Order(("spread~1",), 1), "spread needs 2 or more"),
        (model_of(torch.nn.Linear(2, 2)), ORDER, "no router was found"),
    ):
        said: list[str] = []
        worker = types.SimpleNamespace(get_model=lambda model=model: model, device=CPU)
        forcing = Forcing(worker, config, HERE, order, About(TMP / "forced", "a"))
        forcing._refuse = said.append
        forcing.bind()
        assert reason in said[0], said


def check_two_data_parallel_ranks_read_from_places_of_their_own() -> None:
    cuts = [Course(ORDER, EXPERTS, 2, LAYERS, MOST, dp, 2).next({"spread~0"}, 3) for dp in (0, 1)]
    assert cuts[0].start != cuts[1].start


def kernel_of(
    w1: tuple[int, ...], w2: tuple[int, ...], *, ranks: int = 1, mode: str = "FULL"
) -> Any:
    """What the recorder learns where a Triton kernel with these weights asks vLLM for its blocks,
    as if on an H200."""
    from vllm.model_executor.layers.fused_moe import fused_moe
    from vllm.model_executor.layers.fused_moe.experts import triton_moe

    name = next(
        n for n in ("get_device_name_as_file_name", "current_platform") if n in vars(fused_moe)
    )
    own_name = getattr(fused_moe, name)
    device = lambda: "NVIDIA_H200"  # noqa: E731
    setattr(
        fused_moe,
        name,
        device
        if "file" in name
        else types.SimpleNamespace(get_device_name=device, is_rocm=lambda: False),
    )
    own = fused_moe.try_get_optimal_moe_config
    asked = tiling.Asked()
    asked.begin()
    assert triton_moe.try_get_optimal_moe_config is not own
    triton_moe.try_get_optimal_moe_config(w1, w2, 2, None, 100, block_shape=None)
    asked.end()
    assert fused_moe.try_get_optimal_moe_config is own
    assert triton_moe.try_get_optimal_moe_config is own
    layers = routers.find(model_of(moe(Router20())))
    learned = tiling.kernel(layers, serving(ranks, mode), CPU, asked)
    blocks = {rows: own(w1, w2, 2, None, rows) for rows in range(1, 8192 * ranks + 1)}
    setattr(fused_moe, name, own_name)
    return learned, {rows: (b["BLOCK_SIZE_M"], b["BLOCK_SIZE_N"]) for rows, b in blocks.items()}


def serving(ranks: int, mode: str) -> Any:
    return types.SimpleNamespace(
        compilation_config=types.SimpleNamespace(
            cudagraph_mode=types.SimpleNamespace(name=mode),
            cudagraph_capture_sizes=[1, 2, 4, 8, 16, 24],
        ),
        parallel_config=types.SimpleNamespace(data_parallel_size=ranks),
        scheduler_config=types.SimpleNamespace(max_num_batched_tokens=8192),
    )


def check_a_tuned_kernel_has_the_blocks_of_every_step_size() -> None:
    learned, blocks = kernel_of((8, 28672, 4096), (8, 4096, 14336), mode="NONE")
    assert learned.source == "tuned"
    assert learned.table == "E=8,N=14336,device_name=NVIDIA_H200.json"
    assert (learned.local_experts, learned.columns, learned.top_k) == (8, (28672, 4096), 2)
    for tokens, (block_m, block_n) in blocks.items():
        found = learned.tiling(tokens)
        assert (found.block_m, found.block_n) == (block_m, block_n), tokens
    assert len(learned.tilings) < 20


def check_an_untuned_kernel_follows_the_default_rule() -> None:
    learned, blocks = kernel_of((2, 28672, 4096), (2, 4096, 14336), mode="NONE")
    assert (learned.source, learned.table, learned.local_experts) == ("default", "", 2)
    assert all(learned.tiling(n).block_m == blocks[n][0] for n in blocks)


def check_graphs_and_data_parallel_ranks_pad_a_step() -> None:
    """20 tokens on 2 ranks: 10 each, padded to a graph of 16, so the kernel sees 32 rows."""
    learned, blocks = kernel_of((8, 28672, 4096), (8, 4096, 14336), ranks=2)
    for tokens, rows in ((1, 2), (9, 16), (20, 32), (48, 48), (49, 50), (16384, 16384)):
        found = learned.tiling(tokens)
        assert (found.block_m, found.block_n) == blocks[rows], tokens
    assert learned.graphs == (2, 4, 8, 16, 32, 48)
    assert [learned.padding(tokens) for tokens in (1, 20, 48, 49)] == [1, 12, 0, 0]


def check_a_kernel_that_never_asks_or_differs_has_no_tiling() -> None:
    layers = routers.find(model_of(moe(Router20())))
    layers[0].module.routed_experts = types.SimpleNamespace(
        hidden_size=64,
        intermediate_size_per_partition=96,
        local_num_experts=4,
        params_dtype=torch.bfloat16,
    )
    asked = tiling.Asked()
    plain = tiling.kernel(layers, serving(1, "NONE"), CPU, asked)
    assert (plain.tilings, plain.source, plain.sms, plain.graphs) == ((), "", 0, ())
    assert (plain.dtype, plain.columns, plain.local_experts) == ("bfloat16", (192, 64), 4)
    asked.last = {"another": "signature"}
    assert tiling.kernel(layers, serving(1, "NONE"), CPU, asked) == plain


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    for name, check in list(globals().items()):
        if name.startswith("check_") and name != "check_triton":
            check()
            print("ok", name)
