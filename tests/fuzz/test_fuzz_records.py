"""What other projects and other commands wrote is read, or refused in one line of our own error."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from support.garbage import json_like, mutated, near, nested, spoilt

from core import cli
from core.analysis import calibration, peer
from core.analysis.calibration import Calibration
from core.analysis.cost_model import ROWS, CostModel
from core.backends import modelfiles, vllm_running
from core.commands import runs
from core.commands.watch_table import lines
from core.errors import GatescopeError
from core.experiment.cell import Cell
from core.experiment.config import Config
from core.experiment.tables import Backend, Experiment, Model
from core.recorder.gatescope_recorder.about import SUFFIX
from core.recorder.gatescope_recorder.gatelog import MAGIC, GateLogWriter, Header, Step
from core.recorder.gatescope_recorder.kernel import Kernel, Tiling
from core.routing import foreign, recording
from core.routing.price import PriceList, Timed
from core.routing.windows import Watched
from core.rundir import past, sweep
from core.rundir.sweep import SweepFile
from core.stats import arrays
from core.stats.estimate import Estimate

pytestmark = pytest.mark.fuzz


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def told(read: Callable[[], Any]) -> Any:
    """What `read` gives, or the error that it refuses with: one line."""
    try:
        found = read()
    except GatescopeError as error:
        found = error
    assert not isinstance(found, Exception) or len(str(found).splitlines()) == 1
    return found


def built(value: Any) -> Any:
    """A document as JSON would hold it."""
    return json.loads(msgspec.json.encode(value, enc_hook=str))


# --- what gatescope convert reads ---

COUNTS = {"logical_count": [[[2, 0, 2, 0], [1, 1, 1, 1]], [[0, 0, 1, 1], [2, 0, 0, 0]]]}


def saved(write: Callable[[io.BytesIO], None]) -> bytes:
    data = io.BytesIO()
    write(data)
    return data.getvalue()


def npy(routed: Any) -> str:
    return base64.b64encode(saved(lambda file: np.save(file, routed))).decode()


ROUTED = np.array([[[0, 1]], [[2, 3]]], np.uint8)
NPY = saved(lambda file: np.save(file, ROUTED))
NPZ = saved(lambda file: np.savez(file, ok=ROUTED))
ANSWER = {
    "choices": [{"routed_experts": npy(ROUTED)}],
    "usage": {"prompt_tokens": 1},
}


@given(
    data=(mutated(COUNTS) | mutated([ANSWER]) | json_like("logical_count", "choices", "usage")).map(
        lambda value: json.dumps(value).encode()
    )
    | near(b'{"logical_count": [[[1]]]}', b"\n", b"\xef\xbb\xbf", b"NaN", b"1e999")
    | st.sampled_from(nested()),
    top_k=st.none() | st.integers(1, 9),
    experts=st.none() | st.integers(2, 9),
)
@example(data=b'{"logical_count": [[[1e999, 1]]]}', top_k=1, experts=None)
@example(data=b'{"logical_count": [[[1, 2], [3]]]}', top_k=1, experts=None)
@example(data=b'{"logical_count": [[{"a": 1}]]}', top_k=1, experts=None)
def test_any_counts_of_other_projects(
    folder: Path, data: bytes, top_k: int | None, experts: int | None
) -> None:
    file = folder / "counts.json"
    file.write_bytes(data)
    found = told(lambda: foreign.read(file, top_k, experts))
    if not isinstance(found, Exception):
        assert (found.loads.sum(axis=2) == found.tokens[:, None] * found.top_k).all()
        (folder / "counts.gatelog").unlink(missing_ok=True)
        foreign.write(found, "m", folder / "counts.gatelog")


@given(
    shape=st.lists(st.integers(0, 3), max_size=4),
    kind=st.sampled_from(["u1", "i8", "f4", "?", "O", "U3", "M8[s]"]),
    cut=st.integers(0, 300),
)
@example(shape=[0, 2, 2], kind="u1", cut=300)
@example(shape=[2, 2, 0], kind="u1", cut=300)
def test_any_routed_experts(folder: Path, shape: list[int], kind: str, cut: int) -> None:
    answered(folder, npy(np.zeros(shape, kind))[:cut])


@given(
    data=spoilt(NPY, b"PK\3\4", b"PK\5\6", b"(", b"99999999999999", b"'")
    | spoilt(NPZ, b"PK\3\4", b"PK\5\6", b"\xff\xff\xff\xff")
)
@example(data=b"PK\3\4")  # zipfile.BadZipFile
@example(data=NPY.replace(b"(2, 1, 2)", b"(2, 1, (2"))  # tokenize.TokenError
@example(data=NPY.replace(b"(2, 1, 2), }     ", b"(99999999999999,), }"))  # MemoryError
@example(data=NPZ)
def test_any_arrays(folder: Path, data: bytes) -> None:
    """As a file, and in base64 as routed experts."""
    with contextlib.suppress(ValueError):
        assert all(isinstance(one, np.ndarray) for one in arrays.load(io.BytesIO(data)).values())
    answered(folder, base64.b64encode(data).decode())


def answered(folder: Path, text: str) -> None:
    file = folder / "answers.json"
    file.write_text(json.dumps([{**ANSWER, "choices": [{"routed_experts": text}]}] * 2))
    told(lambda: foreign.read(file, None, 4))


META = {"num_experts": 4, "num_experts_per_token": 2, "ep_size": 2}


@given(
    meta=mutated(META) | json_like(*META),
    keys=st.lists(st.sampled_from(["0_0", "0_1", "1_0", "x", "1", "0_0_0", "-1_9"]), max_size=3),
    size=st.integers(0, 5),
    kind=st.sampled_from(["i8", "f4", "?"]),
)
@example(meta=META | {"num_experts": 10**12}, keys=["0_0"], size=4, kind="i8")
@example(meta=META | {"num_experts": -1}, keys=["0_0"], size=4, kind="i8")
@example(meta=META, keys=["0_0"], size=4, kind="f4")
@example(meta=META | {"ep_size": 0}, keys=["0_0"], size=4, kind="i8")
def test_any_statistics_of_tensorrt_llm(
    folder: Path, meta: Any, keys: list[str], size: int, kind: str
) -> None:
    place = folder / "statistics"
    place.mkdir(exist_ok=True)
    (place / "meta_info.json").write_text(json.dumps(meta))
    save_file({key: np.ones(size, kind) for key in keys}, place / "rank0.safetensors")
    found = told(lambda: foreign.read(place, None, None))
    if not isinstance(found, Exception):
        (folder / "statistics.gatelog").unlink(missing_ok=True)
        foreign.write(found, "m", folder / "statistics.gatelog")


# --- what gatescope compare reads ---

PEERS: list[dict[str, Any]] = [
    {"mean_ttft_ms": 1.0, "mean_e2el_ms": 2, "output_throughput": 3.0},
    {"time_to_first_token": {"avg": 1.0}, "request_latency": {"avg": 2}},
    {"benchmarks": [{"metrics": {"request_latency": {"successful": {"mean": 1.0}}}}]},
]


@given(
    data=st.one_of(*(mutated(one) for one in PEERS)).map(lambda v: json.dumps(v).encode())
    | near(b'{"mean_ttft_ms": 1}', b"[", b"]", b"1e999", b"\xef\xbb\xbf", b"\n")
    | st.sampled_from([*nested(), b"[" * 900 + b"]" * 900])
)
@example(data=b'{"mean_ttft_ms": 1' + b"0" * 400 + b"}")
@example(data=json.dumps(PEERS[2]).replace("1.0", "1" + "0" * 400).encode())
def test_any_result_of_another_load_generator(folder: Path, data: bytes) -> None:
    (folder / "peer.json").write_bytes(data)
    found = told(lambda: peer.read(folder / "peer.json"))
    if not isinstance(found, Exception):
        assert all(np.isfinite([*row.figures.values()]).all() for row in found)


# --- what gatescope calibrate left ---

KERNEL = Kernel(
    "triton",
    sms=10,
    experts=4,
    local_experts=4,
    top_k=2,
    columns=(64, 32),
    tilings=(Tiling(8, 16, 64),),
)
PRICES = PriceList("G", "e", KERNEL, [Timed(8, [[8, 8, 0, 0], [4, 4, 4, 4]], [4.0, 8.0])])
MODEL = CostModel(phase="decode", by=ROWS, terms={"active": Estimate(2.0)})
CALIBRATION = built(
    Calibration(backend="b", engine="e", made="t", price_list=PRICES, decode=MODEL, prefill=MODEL)
)


@given(document=mutated(CALIBRATION, "active", "fixed"))
@example(document={**CALIBRATION, "decode": {**CALIBRATION["decode"], "by": "none"}})
def test_any_calibration(folder: Path, document: Any) -> None:
    (folder / "calibration.json").write_bytes(json.dumps(document).encode())
    found = told(lambda: calibration.read(folder))
    if not isinstance(found, Exception):
        told(found.prices)
        assert all(map(np.isfinite, found.decode.costs.values()))


# --- sweeps and past runs ---

CONFIG = Config(
    path=Path("experiments.toml"),
    experiment=Experiment(),
    model=Model(),
    backends=(Backend(name="b", port=0, tensor_parallel=1),),
    dataset_paths=(),
)
SWEEP = built(
    SweepFile(
        name="s",
        started="2026-01-01T00:00:00+00:00",
        seed=0,
        metric="mean_tpot_ms",
        cells=[Cell(slug="b,x=1", settings={"x": 1}, config=CONFIG)],
    )
)


@given(document=mutated(SWEEP))
def test_any_file_of_a_sweep(folder: Path, document: Any) -> None:
    place = folder / "sweep"
    place.mkdir(exist_ok=True)
    (place / sweep.NAME).write_bytes(json.dumps(document).encode())
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["sweep", "status", str(place)])
    assert code in (0, 1) or len(err.getvalue().splitlines()) == 1


RECORDED = Path(__file__).parents[1] / "tui" / "runs" / "failed" / "events.jsonl"
EVENTS = [json.loads(line) for line in RECORDED.read_bytes().splitlines()]
EVENTS = [e for e in EVENTS if e["event"] not in ("RequestFinished", "Sampled")]


@given(document=mutated(EVENTS), order=st.randoms())
def test_any_past_run(folder: Path, document: list[Any], order: Any) -> None:
    place = folder / "runs" / "one"
    place.mkdir(parents=True, exist_ok=True)
    if order.random() < 0.3:
        order.shuffle(document)
    lines = b"".join(json.dumps(event).encode() + b"\n" for event in document)
    (place / "events.jsonl").write_bytes(lines)
    found, wrong = past.of_folder(folder / "runs")
    assert len(found) + len(wrong) == 1
    assert len(runs.rows(found)) == len(found)


# --- what gatescope record left, and a model's own files ---


@given(header=mutated(built(Header("e", "m", 1, 2, 1, wall_ns=1, monotonic_ns=1))))
@example(header=built(Header("e", "m", 1, 2, 1)) | {"wall_ns": 10**30})
@example(header=built(Header("e", "m", 1, 2, 1)) | {"wall_ns": -(2**63)})
def test_any_header_of_a_log_that_is_watched(folder: Path, header: dict[str, Any]) -> None:
    place = folder / "watched"
    path = place / "dp0_pp0.gatelog"
    path.unlink(missing_ok=True)
    good = Header("e", "m", 1, 2, 1)
    writer = GateLogWriter(path, good)
    writer.append(Step(0, 10**18, 5, 3, 1, 2, 1, {"": 3}, np.array([[2, 1]])))
    writer.close()
    data, head = path.read_bytes(), json.dumps(header).encode()
    size = len(MAGIC) + 4 + int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
    path.write_bytes(MAGIC + len(head).to_bytes(4, "little") + head + data[size:])
    watched = Watched(place)
    watched.read(1e9)
    assert lines(watched, 1e9)


@given(about=json_like("moe_backend", "recorder", "refused") | mutated({"moe_backend": "TRITON"}))
def test_anything_that_a_worker_wrote_of_itself(folder: Path, about: Any) -> None:
    place = folder / "workers"
    place.mkdir(exist_ok=True)
    (place / f"dp0_pp0{SUFFIX}").write_bytes(json.dumps(about).encode())
    assert all(isinstance(v, str) for v in vllm_running.reported(place).values())


MIXTRAL = {
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "text_config": {"num_experts": [8, 8], "moe_topk": [2, 2]},
}


@given(
    data=(mutated(MIXTRAL) | json_like(*MIXTRAL)).map(lambda v: json.dumps(v).encode())
    | near(b'{"num_experts": 8', b"\xef\xbb\xbf", b"}", b"\xff")
    | st.sampled_from(nested())
)
def test_any_config_of_a_model(folder: Path, data: bytes) -> None:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_bytes(data)
    shape = modelfiles.moe_shape(str(folder / "model"))
    assert shape is None or 0 < shape[1] <= shape[0]
    modelfiles.expert_widths(str(folder / "model"))
    modelfiles.layers(str(folder / "model"))


@given(
    layer=mutated({"num_tokens": [2, 1], "expert_loads": [[2, 2, 0], [1, 0, 1]]}),
)
def test_any_layer_that_is_replayed(folder: Path, layer: Any) -> None:
    place = folder / "replayed"
    place.mkdir(exist_ok=True)
    (place / "gate_logs_0.json").write_bytes(json.dumps(layer).encode())
    found = told(lambda: recording.read(place))
    if not isinstance(found, Exception):
        found.write(folder / "replay")
