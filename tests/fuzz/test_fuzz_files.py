"""Files: whatever is in them, a reader reads them or says in one line of its own error what is
wrong."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.about import about as run_json_of
from support.garbage import json_like, near, nested, texts

from core import files
from core.analysis import results as analysis
from core.errors import DatasetError, FileError, GateLogError, GatescopeError
from core.plots import scatter
from core.recorder.gatescope_recorder.gatelog import BLOCK_HEAD, BLOCK_MAGIC, MAGIC, ZLIB
from core.report import summary
from core.routing import eplb, gatelog, measured_folder
from core.routing import folder as gate_folder
from core.rundir import about as run_json
from core.rundir import journal
from core.validity import verdict
from core.workload import folder as dataset_folder
from core.workload import formats, generator, predictor

pytestmark = pytest.mark.fuzz


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def written(value: Any) -> bytes:
    """As JSON with what Python's own writer allows: NaN, lone surrogates escaped, any size of
    number."""
    return json.dumps(value).encode()


def told(read: Callable[[], Any], *errors: type[Exception]) -> Any:
    """What `read` gives, or the error that it refuses with: one line."""
    try:
        found = read()
    except errors as error:
        found = error
    assert not isinstance(found, Exception) or len(str(found).splitlines()) == 1
    return found


# --- maps of experts ---

MAP = {"index": 3, "logical_to_physical": [[[0], [1], [2], [3]]] * 2}


@given(
    data=st.lists(json_like(*MAP), max_size=2).map(
        lambda lines: b"\n".join(map(written, [MAP, *lines])) + b"\n"
    )
    | near(written(MAP), b"\n", b"[[[", b"-1", b"]]]", b"1e999", b"0.5")
    | st.sampled_from(nested()).map(lambda line: line + b"\n")
)
@example(data=written(MAP | {"index": math.inf}) + b"\n")
@example(data=written(MAP | {"logical_to_physical": [[[10**30]]]}) + b"\n")
@example(data=written(MAP | {"logical_to_physical": [[[0], [1], [2], [3]]]}) + b"\n")
@example(data=written(MAP | {"logical_to_physical": [[[-5], [0], [0], [0]]] * 2}) + b"\n")
def test_any_map_of_experts(folder: Path, data: bytes) -> None:
    file = folder / "dp0_pp0.eplb.jsonl"
    file.write_bytes(data)
    maps = eplb.Maps(file, 2)

    def by_rank() -> Any:
        maps.read()
        return maps.rank_loads(np.ones((2, 2, 4), np.uint8), np.array([0, 9]))

    found = told(by_rank, ValueError)
    if isinstance(found, ValueError):
        assert str(found).startswith(str(file))
    elif found is not None:
        assert found.sum(axis=-1) == pytest.approx(4)


# --- datasets ---

DATASET_KEYS = ("prompt", "text", "id", "timestamp", "conversations", "value", "from", "category")


def read_dataset(folder: Path, data: bytes) -> None:
    file = folder / "001.jsonl"
    file.write_bytes(data)
    found = told(lambda: formats.read(file, "001"), DatasetError)
    if isinstance(found, Exception):
        assert str(found).startswith(str(file))
    else:
        assert all(p.text.strip() and p.text.encode() and p.id.encode() for p in found.prompts)
        assert all(p.timestamp is None or math.isfinite(p.timestamp) for p in found.prompts)


@given(rows=st.lists(json_like(*DATASET_KEYS), min_size=1, max_size=3), as_array=st.booleans())
@example(rows=[{"prompt": "a", "id": 10**30}], as_array=False)
@example(rows=[{"prompt": "\ud800"}], as_array=False)
def test_any_dataset(folder: Path, rows: list[Any], as_array: bool) -> None:
    read_dataset(folder, written(rows) if as_array else b"\n".join(map(written, rows)))


@given(
    data=near(
        b'{"prompt": "a"}',
        b'{"id": "a", "text": "b"}',
        b"\n",
        b"[",
        b']}"',
        b"\\ud800",
        b"\xef\xbb\xbf",
    )
    | st.sampled_from(nested())
)
@example(data=b'{"prompt": "a", "b": ' + nested()[0])
@example(data=b'[{"conversations": ' + nested()[0])
@example(data=b'{"prompt": "a"}\n' + nested()[1])
def test_any_bytes_as_a_dataset(folder: Path, data: bytes) -> None:
    read_dataset(folder, data)


@given(said=st.lists(texts, max_size=4))
def test_any_texts_are_scored_or_have_no_score(said: list[str]) -> None:
    found = told(lambda: predictor.predict(said), ValueError)
    assert isinstance(found, ValueError) or 0 <= found.score <= 1


@given(listed=json_like("file", "index", "score"))
@example(listed=[{"file": "../x"}])
def test_any_list_of_generated_datasets(folder: Path, listed: Any) -> None:
    (folder / "metadata.json").write_bytes(written(listed))
    told(lambda: dataset_folder._listed(folder), FileError)
    (folder / "queries.json").write_bytes(written(listed))
    told(lambda: generator.load_queries(folder / "queries.json"), FileError)


# --- gate logs ---

HEADER = {"engine": "e", "model": "m", "layers": 1, "experts": 2, "top_k": 1, "count_bytes": 1}
HEADER_KEYS = (*HEADER, "ranks", "placement", "dp", "dp_size", "pp", "pp_size", "schema", "wall_ns")


def block(raw: bytes, steps: int = 1, raw_len: int | None = None, codec: int = ZLIB) -> bytes:
    """A block with a good checksum, whatever is in it."""
    packed = zlib.compress(raw, 1)
    size = len(raw) if raw_len is None else raw_len
    return (
        BLOCK_HEAD.pack(BLOCK_MAGIC, steps, size, len(packed), zlib.crc32(packed), codec) + packed
    )


def raw_block(labels: bytes, numbers: list[int], counts: bytes) -> bytes:
    return (
        struct.pack("<I", len(labels))
        + labels
        + struct.pack(f"<{len(numbers)}q", *numbers)
        + counts
    )


def measured(folder: Path, log: bytes) -> None:
    """A folder with this log is measured, and what is wrong with it is reported."""
    (folder / "dp0_pp0.gatelog").write_bytes(log)
    told(lambda: gatelog.read(folder / "dp0_pp0.gatelog"), GateLogError)
    found, problems = measured_folder.measure_folder(folder)
    assert found or problems
    files.formatted(msgspec.to_builtins(found))


@pytest.fixture
def logs(folder: Path) -> Path:
    (folder / "logs").mkdir(exist_ok=True)
    return folder / "logs"


@given(
    header=st.dictionaries(st.sampled_from(HEADER_KEYS), json_like(), max_size=4),
    tail=near(
        block(raw_block(b'["a"]', [0] * 8, b"\1\0")), BLOCK_HEAD.pack(BLOCK_MAGIC, 1, 1, 1, 1, 1)
    ),
)
@example(header={"placement": [2**40, 0], "ranks": 2}, tail=b"")
@example(header={"ranks": "2"}, tail=b"")
@example(header={"experts": 2**40}, tail=b"")
@example(header={"dp_size": 10**30}, tail=b"")
def test_any_header_of_a_gate_log(folder: Path, header: dict[str, Any], tail: bytes) -> None:
    (folder / "headers").mkdir(exist_ok=True)
    head = written({**HEADER, **header})
    measured(folder / "headers", MAGIC + struct.pack("<I", len(head)) + head + tail)


@given(
    labels=near(b'["a"]', b'["a", "a"]', b"[[]]", b"{}", b"[1]") | st.sampled_from(nested(5000)),
    numbers=st.lists(
        st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 9), min_size=7, max_size=10
    ),
    counts=st.binary(max_size=4),
    steps=st.integers(0, 2**32 - 1) | st.integers(0, 2),
    raw_len=st.none() | st.integers(0, 2**32 - 1),
    codec=st.integers(0, 3),
)
@example(
    labels=b'["a"]',
    numbers=[0, 0, 0, -5, 0, 0, 0, -5],
    counts=b"\1\0",
    steps=1,
    raw_len=None,
    codec=1,
)
@example(
    labels=b"[[]]", numbers=[0, 0, 0, 1, 0, 0, 0, 1], counts=b"\1\0", steps=1, raw_len=None, codec=1
)
@example(
    labels=b'["a"]',
    numbers=[0] * 3 + [2**62, 0, 0, 0] + [2**62],
    counts=b"\1\0",
    steps=1,
    raw_len=None,
    codec=1,
)
def test_any_block_of_a_gate_log(
    folder: Path,
    labels: bytes,
    numbers: list[int],
    counts: bytes,
    steps: int,
    raw_len: int | None,
    codec: int,
) -> None:
    (folder / "blocks").mkdir(exist_ok=True)
    head = written(HEADER)
    made = block(raw_block(labels, numbers, counts), steps, raw_len, codec)
    good = block(raw_block(b'["001"]', [0, 0, 9, 1, 1, 0, 1, 1], b"\1\0"))
    measured(folder / "blocks", MAGIC + struct.pack("<I", len(head)) + head + good + made + good)


@given(
    data=near(
        MAGIC,
        b"{}",
        struct.pack("<I", 2),
        struct.pack(">I", 200),
        BLOCK_HEAD.pack(BLOCK_MAGIC, 1, 1, 1, 1, 1),
    )
)
def test_any_bytes_as_a_gate_log(folder: Path, data: bytes) -> None:
    (folder / "bytes").mkdir(exist_ok=True)
    measured(folder / "bytes", data)


LAYER_KEYS = ("step", "num_tokens", "expert_loads")


@given(
    layer=st.fixed_dictionaries({}, optional={key: json_like() for key in LAYER_KEYS})
    | json_like(*LAYER_KEYS)
)
@example(layer={"num_tokens": 5, "expert_loads": [[1.0]]})
@example(layer={"num_tokens": [10**30], "expert_loads": [[1.0]]})
@example(layer={"num_tokens": [1], "expert_loads": [[float("nan")]]})
@example(layer={"num_tokens": [1], "expert_loads": [[]]})
@example(layer={"num_tokens": [2**62], "expert_loads": [[1e308, 1e308]]})
def test_any_layer_in_upstream_s_layout(folder: Path, layer: Any) -> None:
    (folder / "json").mkdir(exist_ok=True)
    (folder / "json" / "gate_logs_0.json").write_bytes(written(layer))
    found, problems = measured_folder.measure_folder(folder / "json")
    assert found or problems


@given(totals=json_like("refused", "disabled", "dropped", "violations", "silent"))
@example(totals={"silent": 3, "dropped": [[]]})
def test_any_totals_beside_a_gate_log(folder: Path, totals: Any) -> None:
    (folder / "totals").mkdir(exist_ok=True)
    (folder / "totals" / "dp0_pp0.gatelog.json").write_bytes(written(totals))
    assert all(isinstance(line, str) for line in gate_folder.problems(folder / "totals"))


# --- a run directory ---

RESULT_KEYS = (
    *scatter.METRICS,
    "measured_imbalance",
    "imbalance_score",
    "excess_cv",
    "completed",
    "ttfts",
    "errors",
    "duration",
    "decode_step_ms",
    "delivery_lag_ms",
    "longest_step",
    "ms",
    "tokens",
)


@given(
    results=st.lists(
        st.dictionaries(st.sampled_from(RESULT_KEYS), json_like(*RESULT_KEYS), max_size=6),
        max_size=5,
    ),
    mapping=json_like("gates_logs_01", "gates_logs_001-r2"),
    about=st.dictionaries(
        st.sampled_from(["backends", "engine"]), json_like("baseline"), max_size=2
    ),
)
@example(
    results=[{"measured_imbalance": 3}], mapping={}, about={"backends": ["baseline"], "engine": "e"}
)
@example(results=[{}], mapping=[], about={"backends": {"baseline": 1}, "engine": None})
@example(results=[{}], mapping={}, about={"backends": [["../.."]], "engine": "e"})
@example(
    results=[{"decode_step_ms": 1.0, "longest_step": {"ms": 1.0, "tokens": 0}}] * 5,
    mapping={},
    about={},
)
@example(results=[{"duration": 1e-320, "delivery_lag_ms": 1e308}], mapping={}, about={})
@example(
    results=[{"decode_step_ms": 10**400, "longest_step": {"ms": 1.0, "tokens": 1}}] * 5,
    mapping={},
    about={},
)
@example(
    results=[{"decode_step_ms": 1.0, "longest_step": {"ms": 1.0, "tokens": 10**400}}] * 5,
    mapping={},
    about={},
)
def test_any_results(folder: Path, results: list[Any], mapping: Any, about: dict[str, Any]) -> None:
    path = folder / "run"
    (path / "baseline" / "results_json").mkdir(parents=True, exist_ok=True)
    for place in range(5):
        file = path / "baseline" / "results_json" / f"{place + 1:03d}.json"
        if place < len(results):
            file.write_bytes(written(results[place]))
        else:
            file.unlink(missing_ok=True)
    whole = msgspec.to_builtins(run_json_of(), enc_hook=str)
    (path / "run.json").write_bytes(written({**whole, **about}))
    (path / "baseline_real_imbalance.json").write_bytes(written(mapping))
    found = told(lambda: analysis.of_run_directory(path), GatescopeError)
    if isinstance(found, Exception):
        return
    for group in found[0]:
        medians = summary.medians(group)
        assert all(v is None or math.isfinite(v) for v in medians.values())
    summary.csv_text(summary.rows(found[0]))
    verdict.of_results(found[0])
    for axis in scatter.MEASURED:
        told(lambda axis=axis: scatter.series(found[0], "mean_tpot_ms", axis), GatescopeError)  # type: ignore[misc]


ABOUT_KEYS = (
    "config",
    "engine_kind",
    "runs",
    "path",
    "experiment",
    "model",
    "backends",
    "name",
    "port",
    "backend",
)


@given(
    about=json_like(*ABOUT_KEYS)
    | st.fixed_dictionaries({key: json_like(*ABOUT_KEYS) for key in ABOUT_KEYS[:3]})
)
@example(about={"config": {"path": 10**400}, "engine_kind": "vllm", "runs": []})
def test_any_run_json(folder: Path, about: Any) -> None:
    (folder / "run.json").write_bytes(written(about))
    told(lambda: run_json.read(folder), GatescopeError)


@given(
    line=near(b'{"event":"RunFailed","run":"a","reason":"b"}', b"\n", b'{"event":"Sampled"')
    | st.sampled_from(nested())
)
@example(line=b'{"event":"RunFailed","run":"\\ud800","reason":"b"}\n')
def test_any_journal(folder: Path, line: bytes) -> None:
    (folder / "events.jsonl").write_bytes(line + b"\n")
    told(lambda: journal.read_events(folder), GatescopeError)
