"""What other projects log, read by hand-made files in their formats, and written for them."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from core import cli
from core.errors import GateLogError, UsageError
from core.routing import folder, foreign, measured_folder, peers, torch_file
from core.routing.foreign import Foreign

SAVED = Path(__file__).parent / "saved"  # by torch.save of torch 2.13, on a CPU
STAT = [  # of layers 1 and 2; layer 0 is dense, and the fifth step of the buffer is empty
    [[5, 3, 2, 2], [5, 3, 2, 2]],
    [[4, 2, 4, 4], [5, 1, 5, 3]],
    [[4, 3, 4, 5], [5, 4, 4, 3]],
    [[2, 6, 7, 3], [5, 3, 4, 6]],
]


def test_a_dump_of_sglang() -> None:
    found = foreign.read(SAVED / "sglang-stat.pt", 2, None)
    assert found.loads.tolist() == STAT
    assert (found.top_k, found.layers, found.prefill) == (2, (1, 2), None)
    assert found.tokens.tolist() == [6, 7, 8, 9]


def test_experts_of_a_token_must_be_given_and_fit() -> None:
    with pytest.raises(UsageError, match="give --top-k"):
        foreign.read(SAVED / "sglang-stat.pt", None, None)
    with pytest.raises(GateLogError, match="do not add up to tokens with 4 experts each"):
        foreign.read(SAVED / "sglang-stat.pt", 4, None)


def test_the_json_of_init_expert_location(tmp_path: Path) -> None:
    file = tmp_path / "count.json"
    file.write_text(json.dumps({"logical_count": [[0, 0], [3, 5], [4, 4]]}))  # without steps
    found = foreign.read(file, 1, None)
    assert (found.loads.tolist(), found.layers) == ([[[3, 5], [4, 4]]], (1, 2))
    file.write_text(json.dumps({"logical_count": [[3, 5], [4, 3]]}))
    with pytest.raises(GateLogError, match="layers counted different numbers"):
        foreign.read(file, 1, None)


def test_strides_and_offsets_of_a_tensor() -> None:
    want = np.arange(24).reshape(2, 3, 4).transpose(2, 1, 0)[1:]
    assert np.array_equal(torch_file.read(SAVED / "strided.pt")["logical_count"], want)


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/gatescope-was-here",)


def torch_zip(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return path


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    trace = Path("/tmp/gatescope-was-here")
    with pytest.raises(GateLogError, match=r"it holds a posix\.system"):
        torch_file.read(torch_zip(tmp_path / "bad.pt", pickle.dumps({"logical_count": Bomb()})))
    assert not trace.exists()
    for module, name in (("builtins", "eval"), ("torch", "load"), ("torch._utils", "x")):
        data = f"c{module}\n{name}\n.".encode()
        with pytest.raises(GateLogError, match="it holds a"):
            torch_file.read(torch_zip(tmp_path / "bad.pt", data))


@given(
    size=st.lists(st.integers(-2, 9), max_size=3), stride=st.lists(st.integers(-9, 99), max_size=3)
)
def test_a_tensor_never_reads_beyond_its_storage(size: list[int], stride: list[int]) -> None:
    storage = np.arange(30)
    try:
        found = torch_file._tensor(storage, 3, size, stride)
    except ValueError:
        return
    assert found.shape == tuple(size)
    assert found.size == 0 or found.min() >= 3


@pytest.mark.parametrize("name", ["x.pt", "x.json"])
def test_a_file_that_is_not_there_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(GateLogError, match=rf"{name}: cannot be read: No such file"):
        foreign.read(tmp_path / name, 2, None)


def test_a_byte_order_mark_is_no_part_of_the_counts(tmp_path: Path) -> None:
    text = json.dumps({"logical_count": [[[2, 0]]]})
    (tmp_path / "x.json").write_text(text, encoding="utf-8-sig")
    assert foreign.read(tmp_path / "x.json", 2, None).loads.tolist() == [[[2, 0]]]


@given(cut=st.integers(0, 1800), put=st.binary(max_size=6))
@example(cut=1416, put=b"\x00@")  # a zip file of version 6.4
def test_a_damaged_file_is_an_error_of_ours(cut: int, put: bytes, tmp_path_factory: Any) -> None:
    data = (SAVED / "sglang-stat.pt").read_bytes()
    file = tmp_path_factory.mktemp("damaged") / "x.pt"
    file.write_bytes(data[:cut] + put + data[cut + len(put) :])
    with contextlib.suppress(GateLogError):
        foreign.read(file, 2, None)


def test_statistics_of_tensorrt_llm(tmp_path: Path) -> None:
    """Two ranks: their counts are summed, and each has half of the experts."""
    (tmp_path / "meta_info.json").write_text('{"num_experts": 4, "num_experts_per_token": 2}')
    for rank in (0, 1):
        counts = {"100_3": [1, 1, 0, 0], "100_4": [0, 1, 1, 0], "101_3": [2, 0, 0, 2]}
        counts |= {"101_4": [1, 1, 1, 1 + 0 * rank]}
        arrays = {key: np.array(row, np.int64) for key, row in counts.items()}
        save_file(arrays, tmp_path / f"rank{rank}.safetensors")
    found = foreign.read(tmp_path, None, None)
    assert found.loads.tolist() == [[[2, 2, 0, 0], [0, 2, 2, 0]], [[4, 0, 0, 4], [2, 2, 2, 2]]]
    assert (found.top_k, found.layers, found.ranks) == (2, (3, 4), 2)
    (tmp_path / "meta_info.json").unlink()
    with pytest.raises(GateLogError, match="not a folder of TensorRT-LLM's expert statistics"):
        foreign.read(tmp_path, None, None)


def answer(routed: list[list[list[int]]], prompt: int) -> dict[str, Any]:
    data = io.BytesIO()
    np.save(data, np.array(routed, np.uint8))
    text = base64.b64encode(data.getvalue()).decode()
    return {"choices": [{"routed_experts": text}], "usage": {"prompt_tokens": prompt}}


@pytest.mark.parametrize("form", ["lines", "array", "one"])
def test_answers_of_vllm(form: str, tmp_path: Path) -> None:
    answers = [answer([[[0, 1], [2, 3]], [[0, 2], [2, 3]], [[1, 3], [0, 1]]], 2)]
    if form != "one":
        answers.append(answer([[[3, 2], [0, 1]]], 1))  # no token was decoded
    texts = {
        "lines": "\n".join(map(json.dumps, answers)),
        "array": json.dumps(answers),
        "one": json.dumps(answers[0]),
    }
    file = tmp_path / "answers.jsonl"
    file.write_text(texts[form])
    found = foreign.read(file, None, 4)
    first = [[[2, 1, 1, 0], [0, 0, 2, 2]], [[0, 1, 0, 1], [1, 1, 0, 0]]]
    assert found.loads.tolist() == first + [[[0, 0, 1, 1], [1, 1, 0, 0]]] * (form != "one")
    assert found.prefill is not None
    assert found.prefill.tolist() == [2, 0] + [1] * (form != "one")
    with pytest.raises(UsageError, match="give --experts"):
        foreign.read(file, None, None)
    with pytest.raises(GateLogError, match="expert 3 of 3"):
        foreign.read(file, None, 3)


def test_it_is_measured_as_any_log_without_phases_that_it_does_not_say(tmp_path: Path) -> None:
    out = tmp_path / "logs"
    command = ["convert", str(SAVED / "sglang-stat.pt"), "-o", str(out), "--top-k", "2"]
    assert cli.main(command) == 0
    found, problems = measured_folder.measure_folder(out)
    assert problems == []
    measured = found["logs"]
    assert (measured.tokens, measured.steps, measured.layer_numbers) == (30, 4, [1, 2])
    assert (measured.prefill, measured.decode) == (None, None)
    assert measured.expert_loads == np.array(STAT).sum(axis=(0, 1)).tolist()
    assert cli.main(command) == 2  # the folder is not empty


def test_what_is_exported_reads_back(tmp_path: Path) -> None:
    loads = np.array(STAT)
    made = Foreign("test", loads, 2, (1, 2), np.array([6, 0, 0, 0]), 2)
    foreign.write(made, "m", tmp_path / "gate_logs" / "dp0_pp0.gatelog")
    assert folder.read(tmp_path / "gate_logs").loads.tolist() == STAT
    assert cli.main(["export", str(tmp_path), "--layout", "tensorrt-llm"]) == 0
    back = foreign.read(tmp_path / "export" / "gate_logs", None, None)
    assert (back.loads.tolist(), back.layers, back.top_k) == (STAT, (1, 2), 2)
    keys = load_file(tmp_path / "export" / "gate_logs" / "rank0.safetensors")
    assert sorted(keys)[:3] == ["0_1", "0_2", "1_1"]
    (file,) = peers.write_sglang(tmp_path / "gate_logs", tmp_path / "sglang")
    counts = json.loads(file.read_text())["logical_count"]
    assert counts == [[0] * 4, *loads.sum(axis=0).tolist()]
    assert foreign.read(file, 2, None).loads.tolist() == [loads.sum(axis=0).tolist()]
    assert cli.main(["export", str(SAVED), "--layout", "sglang"]) == 2


def test_a_damaged_log_is_named_and_the_others_are_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Foreign("test", np.array(STAT), 2, (1, 2))
    foreign.write(made, "m", tmp_path / "gate_logs" / "dp0_pp0.gatelog")
    (tmp_path / "gate_logs-a").mkdir()
    (tmp_path / "gate_logs-a" / "dp0_pp0.gatelog").write_bytes(b"x")
    assert cli.main(["export", str(tmp_path), "--layout", "sglang"]) == 1
    assert "gate_logs-a/dp0_pp0.gatelog: not a gate log" in capsys.readouterr().err
    assert (tmp_path / "export" / "gate_logs" / "logical_count.json").is_file()
