"""`gatescope imbalance` of odd folders: what is there is read, what is not is named; never passed
over."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.about import about
from support.gate_logs import write_layers
from support.synthetic import write_log

from core import cli
from core.files import formatted
from core.recorder.gatescope_recorder.kernel import Kernel, Tiling

# Per-step CVs of two experts with 4 tokens: (3, 1) is 0.5, (2, 2) is 0, (4, 0) is 1.
EVEN: list[list[float]] = [[2, 2]]
HALF: list[list[float]] = [[3, 1]]
ALL: list[list[float]] = [[4, 0]]


class Answer(NamedTuple):
    code: int
    found: dict[str, dict[str, Any]]
    err: str

    def cv(self, name: str) -> float:
        cv: float = self.found[name]["per_step_cv"]
        return round(cv, 9)


def of(folder: Path, *options: str) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["imbalance", str(folder), "--json", *options])
    return Answer(code, json.loads(out.getvalue()), err.getvalue())


def three(folder: Path) -> Path:
    """Layers 0, 1 and 2, of per-step CV 0.5, 1 and 0: on average 0.5."""
    return write_layers(folder, [HALF, ALL, EVEN], [4])


class TestFolders:
    def test_an_empty_one_beside_others_is_named(self, tmp_path: Path) -> None:
        three(tmp_path / "gates_logs_1")
        (tmp_path / "gates_logs_2").mkdir()
        answer = of(tmp_path)
        assert (answer.code, list(answer.found)) == (1, ["gates_logs_1"])
        assert f"{tmp_path}/gates_logs_2: holds no gate log" in answer.err

    def test_two_of_one_dataset_are_named_and_both_measured(self, tmp_path: Path) -> None:
        for name in ("gates_logs_3", "gates_logs_03"):
            three(tmp_path / name)
        answer = of(tmp_path)
        assert (answer.code, sorted(answer.found)) == (1, ["gates_logs_03", "gates_logs_3"])
        assert "gates_logs_3: 2 folders of dataset 003; rename or remove one" in answer.err

    def test_stray_files_beside_folders_are_measured_too(self, tmp_path: Path) -> None:
        three(tmp_path / "all")
        write_layers(tmp_path / "all" / "gates_logs_1", [ALL, ALL, ALL], [4])
        answer = of(tmp_path / "all")
        assert (answer.code, answer.cv("all"), answer.cv("gates_logs_1")) == (0, 0.5, 1.0)

    def test_one_whose_logs_lie_deeper_is_named(self, tmp_path: Path) -> None:
        three(tmp_path / "gates_logs_1")
        three(tmp_path / "more" / "deep" / "run" / "gates_logs_2")
        answer = of(tmp_path)
        assert (answer.code, list(answer.found)) == (1, ["gates_logs_1"])
        assert "/more: not read: gate logs lie deeper, as in" in answer.err
        assert f"run/gates_logs_2; give {tmp_path}/more/deep/run itself" in answer.err

    @pytest.mark.parametrize("name", ["exp", "results", "1"])
    def test_one_of_any_other_name_beside_logs_is_named(self, tmp_path: Path, name: str) -> None:
        three(tmp_path / "gates_logs_1")
        (tmp_path / name / "deep").mkdir(parents=True)
        answer = of(tmp_path)
        assert (answer.code, list(answer.found)) == (1, ["gates_logs_1"])
        assert (
            f"{tmp_path}/{name}: not read: it holds no gate logs; move it elsewhere" in answer.err
        )

    def test_a_hidden_one_with_logs_is_named_and_another_is_none(self, tmp_path: Path) -> None:
        three(tmp_path / "gates_logs_1")
        (tmp_path / ".git" / "objects").mkdir(parents=True)
        assert of(tmp_path).code == 0
        three(tmp_path / ".old")
        answer = of(tmp_path)
        assert (answer.code, list(answer.found)) == (1, ["gates_logs_1"])
        assert f"{tmp_path}/.old: not read: its name hides it, but it holds gate logs" in answer.err

    def test_what_a_run_writes_beside_its_logs_is_known(self, tmp_path: Path) -> None:
        three(tmp_path / "gate_logs")
        for name in ("results_json", "requests", "graphs"):
            (tmp_path / name / "x").mkdir(parents=True)
        assert of(tmp_path).code == 0

    def test_one_that_cannot_be_read_costs_itself_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        three(tmp_path / "gates_logs_1")
        three(tmp_path / "gates_logs_2")
        whole = Path.iterdir

        def refused(place: Path) -> Any:
            if place.name == "gates_logs_2":
                raise PermissionError(13, "Permission denied", str(place))
            return whole(place)

        monkeypatch.setattr(Path, "iterdir", refused)
        answer = of(tmp_path)
        assert (answer.code, list(answer.found)) == (1, ["gates_logs_1"])
        assert f"{tmp_path}/gates_logs_2: cannot be read: Permission denied" in answer.err

    def test_they_stand_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        for number in (10, 2, 1):
            three(tmp_path / f"gates_logs_{number}")
        assert list(of(tmp_path).found) == ["gates_logs_1", "gates_logs_2", "gates_logs_10"]

    def test_what_a_mac_leaves_is_no_gate_log(self, tmp_path: Path) -> None:
        folder = three(tmp_path / "gates_logs_1")
        (folder / "._gate_logs_0.json").write_bytes(b"\0\5")
        (folder / "._dp0_pp0.gatelog").write_bytes(b"\0\5")
        (tmp_path / "__MACOSX" / "gates_logs_1").mkdir(parents=True)
        answer = of(tmp_path)
        assert (answer.code, answer.err.count("\n")) == (0, 1)  # too few steps, and nothing else

    def test_the_current_one_has_its_own_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(three(tmp_path / "gates_logs_7"))
        assert list(of(Path()).found) == ["gates_logs_7"]


class TestFiles:
    @pytest.mark.parametrize("name", ["gate_logs_1.JSON", "GATE_LOGS_1.json", "gate_logs_01.json"])
    def test_other_spellings_are_read(self, tmp_path: Path, name: str) -> None:
        folder = three(tmp_path / "logs")
        (folder / "gate_logs_1.json").rename(folder / name)
        answer = of(folder)
        assert (answer.code, answer.cv("logs"), answer.found["logs"]["layers"]) == (0, 0.5, 3)

    def test_compressed_ones_are_read(self, tmp_path: Path) -> None:
        folder = three(tmp_path / "logs")
        plain = folder / "gate_logs_1.json"
        (folder / "gate_logs_1.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
        answer = of(folder)
        assert (answer.code, answer.cv("logs")) == (0, 0.5)
        cut = folder / "gate_logs_1.json.gz"
        cut.write_bytes(cut.read_bytes()[:-12])
        answer = of(folder)
        assert (answer.code, answer.cv("logs")) == (1, 0.25)
        assert f"{cut}: not a readable gate log: EOFError" in answer.err

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_other_encodings_of_json_are_read(self, tmp_path: Path, encoding: str) -> None:
        folder = three(tmp_path / "logs")
        file = folder / "gate_logs_1.json"
        file.write_text(file.read_text(), encoding=encoding)
        assert of(folder)[:1] == (0,)
        assert of(folder).cv("logs") == 0.5

    def test_a_layer_in_two_files_that_differ_is_left_out_and_named(self, tmp_path: Path) -> None:
        folder = three(tmp_path / "logs")
        shutil.copy(folder / "gate_logs_2.json", folder / "gate_logs_01.json")
        answer = of(folder)
        assert (answer.code, answer.cv("logs")) == (1, 0.25)  # of layers 0 and 2
        assert (
            f"{folder}: layer 1 is in 2 files, gate_logs_01.json, gate_logs_1.json; keep one"
            in answer.err
        )

    def test_a_layer_in_two_equal_files_counts_once_and_is_named(self, tmp_path: Path) -> None:
        folder = three(tmp_path / "logs")
        shutil.copy(folder / "gate_logs_1.json", folder / "gate_logs_01.json")
        answer = of(folder)
        assert (answer.code, answer.cv("logs"), answer.found["logs"]["files"]) == (1, 0.5, 3)
        assert "layer 1 is in 2 files" in answer.err

    @pytest.mark.parametrize("layers", [3, 4, 7])
    def test_a_missing_middle_layer_is_named(self, tmp_path: Path, layers: int) -> None:
        folder = write_layers(tmp_path / "logs", [HALF] * layers, [4])
        (folder / "gate_logs_1.json").unlink()
        answer = of(folder)
        assert answer.code == 1
        assert "INVALID missing layers: logs: there is no log of layer 1;" in answer.err

    def test_a_layer_that_the_other_folders_have_is_missing_at_any_place(
        self, tmp_path: Path
    ) -> None:
        for number in (1, 2, 3):
            three(tmp_path / f"gates_logs_{number}")
        (tmp_path / "gates_logs_2" / "gate_logs_0.json").unlink()
        answer = of(tmp_path)
        assert answer.code == 1
        assert answer.found["gates_logs_2"]["problems"].count("invalid: missing layers") == 1

    @pytest.mark.parametrize("numbers", [(3, 4, 5), (1, 3, 5), (3, 7, 11), (2, 4, 6, 8)])
    def test_models_that_start_late_or_skip_layers_lack_none(
        self, tmp_path: Path, numbers: tuple[int, ...]
    ) -> None:
        folder = write_layers(tmp_path / "logs", [HALF] * len(numbers), [4])
        for place in reversed(range(len(numbers))):
            (folder / f"gate_logs_{place}.json").rename(folder / f"gate_logs_{numbers[place]}.json")
        assert (of(folder).code, of(folder).cv("logs")) == (0, 0.5)

    def test_an_odd_first_layer_does_not_throw_the_others_out(self, tmp_path: Path) -> None:
        folder = three(tmp_path / "logs")
        odd = {"step": [0], "num_tokens": [4], "expert_loads": [[2, 1, 1]]}
        (folder / "gate_logs_0.json").write_text(json.dumps(odd))
        answer = of(folder)
        assert (answer.code, answer.cv("logs")) == (1, 0.5)  # of (4, 0) and (2, 2)
        assert "gate_logs_0.json: 3 experts, most layers have 2" in answer.err

    @pytest.mark.parametrize(
        "name",
        [
            "gate_logs_x.json",
            "gate_logs_1.json.bak",
            "gates_logs_2.zip",
            "a.gatelog.gz",
            ".gate_logs_3.json.Xa3f9Q",
        ],
    )
    def test_one_that_is_named_like_a_log_and_cannot_be_read_is_named(
        self, tmp_path: Path, name: str
    ) -> None:
        folder = three(tmp_path / "logs")
        (folder / name).write_bytes(b"x")
        answer = of(folder)
        assert (answer.code, answer.cv("logs")) == (1, 0.5)
        assert f"{folder / name}: not read: gate logs are *.gatelog" in answer.err

    @pytest.mark.parametrize("name", ["gate_logs_3.json", "dp0_pp0.gatelog"])
    def test_a_link_that_leads_nowhere_is_named(self, tmp_path: Path, name: str) -> None:
        folder = three(tmp_path / "logs")
        (folder / name).symlink_to(tmp_path / "gone")
        answer = of(folder)
        assert (answer.code, answer.cv("logs")) == (1, 0.5)
        assert str(folder / name) in answer.err

    @pytest.mark.parametrize(
        ("tokens", "said"), [([4.5], "whole numbers in num_tokens"), ([True], "true and false")]
    )
    def test_tokens_that_are_no_counts_are_refused(
        self, tmp_path: Path, tokens: list[float], said: str
    ) -> None:
        folder = three(tmp_path / "logs")
        bad = {"step": [0], "num_tokens": tokens, "expert_loads": HALF}
        (folder / "gate_logs_1.json").write_text(json.dumps(bad))
        answer = of(folder)
        assert (answer.code, answer.cv("logs")) == (1, 0.25)
        assert said in answer.err


class TestRunDirectory:
    def test_its_gate_logs_are_found_by_backend_and_run(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_bytes(formatted(about(backends=["baseline", "all2all"])))
        write_logs(tmp_path / "baseline" / "gate_logs", [[[3, 1]]])
        write_logs(tmp_path / "baseline" / "gate_logs-start2", [[[4, 0]]])
        write_logs(tmp_path / "all2all" / "gate_logs", [[[2, 2]]], "002")
        answer = of(tmp_path)
        assert answer.code == 0
        assert {name: answer.cv(name) for name in answer.found} == {
            "baseline/gates_logs_001": 1.0,  # of the later start
            "all2all/gates_logs_002": 0.0,
        }

    def test_a_backend_without_logs_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_bytes(formatted(about(backends=["baseline", "all2all"])))
        write_logs(tmp_path / "baseline" / "gate_logs", [[[3, 1]]])
        answer = of(tmp_path)
        assert (answer.code, list(answer.found)) == (1, ["baseline/gates_logs_001"])
        assert f"{tmp_path}/all2all: holds no gate logs" in answer.err

    def test_logs_in_it_that_are_not_its_own_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_bytes(formatted(about(backends=["baseline"])))
        write_logs(tmp_path / "baseline" / "gate_logs", [[[3, 1]]])
        write_logs(tmp_path / "export" / "baseline" / "gate_logs", [[[3, 1]]])
        assert of(tmp_path).code == 0
        write_logs(tmp_path / "again" / "baseline" / "gate_logs", [[[3, 1]]])
        three(tmp_path / "gates_logs_1")
        answer = of(tmp_path)
        assert (answer.code, list(answer.found)) == (1, ["baseline/gates_logs_001"])
        assert f"baseline/gate_logs; give {tmp_path}/again/baseline itself" in answer.err
        assert f"{tmp_path}/gates_logs_1: not read: no backend of this run wrote it" in answer.err


def write_logs(folder: Path, loads: list[list[list[int]]], label: str = "001") -> None:
    folder.mkdir(parents=True)
    write_log(folder / "dp0_pp0.gatelog", np.array(loads), top_k=1, labels=[label])


class TestWork:
    LOADS = np.array([[[0, 1, 7, 8]], [[40, 33, 5, 2]]])

    def test_the_busiest_rank_is_told_in_words(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kernel = Kernel(
            "TRITON",
            sms=10,
            columns=(640, 256),
            tilings=(Tiling(8, 16, 64), Tiling(64, 32, 128)),
            source="tuned",
            table="E=4,N=320,device_name=G.json",
        )
        write_log(tmp_path / "dp0_pp0.gatelog", self.LOADS, prefill=[0, 40], kernel=kernel)
        assert cli.main(["imbalance", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert "  kernel         TRITON, tuned (E=4,N=320,device_name=G.json)\n" in out
        decode = "decode: 3.00 active experts, 3.00 tiles, 3.0 + 2.0 waves, 67% of rows padding;"
        assert f"  busiest rank   {decode} work " in out
        assert "  busiest rank   prefill: 4.00 active experts, 6.00 tiles, 3.0 + 2.0 waves" in out

    def test_a_log_that_names_no_kernel_says_so(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_log(tmp_path / "dp0_pp0.gatelog", self.LOADS)
        cli.main(["imbalance", str(tmp_path)])
        out = capsys.readouterr().out
        reason = "the gate log does not name the MoE kernel"
        assert f"decode: 3.50 active experts; tiles – ({reason})" in out
        assert "  kernel " not in out
