from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from support import fake_nvml
from support.fake_nvml import H200

from core.backends import choice, vllm
from core.backends.vllm import Installed
from core.errors import BackendError, ConfigError
from core.experiment.tables import Backend, Model

MODEL = Model(id="mistralai/Mixtral-8x7B-v0.1", load_format="dummy")
BASELINE = Backend(name="baseline", port=8001)
ALL2ALL = Backend(
    name="all2all",
    tensor_parallel=1,
    data_parallel=4,
    expert_parallel=True,
    moe_backend="flashinfer_cutlass",
    all2all_backend="allgather_reducescatter",
)
COMMON = [
    *("--host", "127.0.0.1", "--port", "8001"),
    *(
        "--served-model-name",
        "mistralai/Mixtral-8x7B-v0.1",
        "--load-format",
        "dummy",
        "--max-model-len",
        "4096",
    ),
    *(
        "--max-num-seqs",
        "32",
        "--max-num-batched-tokens",
        "8192",
        "--seed",
        "7",
        "--no-enable-prefix-caching",
    ),
]


def installed(version: str) -> Installed:
    return Installed("python", version, has_moe_flag=version not in ("0.11.2", "0.15.1"))


def arguments(backend: Backend, version: str) -> list[str]:
    return vllm.arguments(backend, MODEL, 7, installed(version))


def tail(backend: Backend, version: str) -> str:
    """What comes behind the arguments that every backend has."""
    words = arguments(backend, version)
    return " ".join(words[words.index("--no-enable-prefix-caching") + 1 :])


class TestCommandLine:
    def test_baseline(self) -> None:
        assert arguments(BASELINE, "0.25.1") == [
            *COMMON,
            "--tensor-parallel-size",
            "4",
            "--moe-backend",
            "triton",
        ]

    def test_api_servers_are_asked_of_vllm_serve_since_the_module_has_one(self) -> None:
        module = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"]
        serve = ["python", "-m", "vllm.entrypoints.cli.main", "serve", "m"]
        assert vllm._program(installed("0.25.1"), "m", ["--api-key", "k"]) == module
        assert vllm._program(installed("0.25.1"), "m", ["--api-server-count", "2"]) == serve
        assert vllm._program(installed("0.25.1"), "m", ["--api-server-count=2"]) == serve

    @pytest.mark.parametrize("version", ["0.20.2", "0.25.1", "0.30.0", "0.32.0", "0.33.0"])
    def test_all2all_names_both_backends(self, version: str) -> None:
        assert tail(ALL2ALL, version) == (
            "--tensor-parallel-size 1 --data-parallel-size 4 --enable-expert-parallel"
            " --all2all-backend allgather_reducescatter --moe-backend flashinfer_cutlass"
        )

    @pytest.mark.parametrize("version", ["0.11.2", "0.15.1"])
    def test_before_the_flag_flashinfer_is_asked_for_by_the_environment(self, version: str) -> None:
        assert tail(ALL2ALL, version) == (
            "--tensor-parallel-size 1 --data-parallel-size 4 --enable-expert-parallel"
            " --all2all-backend allgather_reducescatter"
        )
        env = vllm.environment(ALL2ALL, None, installed(version), {})
        assert env["VLLM_USE_FLASHINFER_MOE_FP16"] == "1"
        assert "VLLM_USE_FLASHINFER_MOE_FP16" not in vllm.environment(
            ALL2ALL, None, Installed("p", "0.25.1"), {}
        )

    def test_before_the_flag_triton_is_the_default(self) -> None:
        assert tail(BASELINE, "0.15.1") == "--tensor-parallel-size 4"

    def test_a_kernel_that_an_old_version_cannot_be_asked_for_is_refused(self) -> None:
        backend = Backend(name="b", moe_backend="deep_gemm")
        with pytest.raises(
            ConfigError,
            match=r"b, moe_backend: vLLM 0\.15\.1 has no --moe-backend .* got 'deep_gemm'",
        ):
            arguments(backend, "0.15.1")

    def test_an_empty_kernel_leaves_the_flag_out_and_extra_arguments_come_last_as_they_are(
        self,
    ) -> None:
        backend = Backend(
            name="b",
            tensor_parallel=1,
            moe_backend="",
            eplb=True,
            enforce_eager=True,
            extra_args=["--eplb-config", '{"step_interval": 100}'],
        )
        assert tail(backend, "0.30.0") == (
            '--enforce-eager --tensor-parallel-size 1 --enable-eplb --eplb-config {"step_interval": 100}'
        )


class TestEnvironment:
    def test_the_recorder_is_put_before_what_the_path_had(self) -> None:
        backend = Backend(name="b", env={"PYTHONPATH": "/mine", "VLLM_CPU_KVCACHE_SPACE": "1"})
        env = vllm.environment(
            backend, Path("/logs"), Installed("python", "0.25.1"), {"PYTHONPATH": "/theirs"}
        )
        assert env["PYTHONPATH"] == f"{vllm.RECORDER}{os.pathsep}/mine"
        assert env["GATESCOPE_GATE_LOGS"] == "/logs"
        assert env["VLLM_CPU_KVCACHE_SPACE"] == "1"
        assert "VLLM_PLUGINS" not in env

    def test_a_choice_of_plugins_is_added_to(self) -> None:
        env = vllm.environment(
            BASELINE, Path("/logs"), Installed("p", "0.25.1"), {"VLLM_PLUGINS": "lora"}
        )
        assert env["VLLM_PLUGINS"] == "lora,gatescope_recorder"

    def test_without_logs_nothing_is_recorded(self) -> None:
        env = vllm.environment(BASELINE, None, Installed("p", "0.25.1"), {"PYTHONPATH": "/theirs"})
        assert not {"GATESCOPE_GATE_LOGS", "PYTHONPATH"} & set(env)

    def test_the_entry_point_names_a_function_that_is_there(self) -> None:
        from importlib.metadata import distributions

        found = [
            d for d in distributions(path=[str(vllm.RECORDER)]) if d.name == "gatescope-recorder"
        ]
        (point,) = found[0].entry_points
        assert (point.group, point.name) == ("vllm.general_plugins", vllm.PLUGIN)
        assert (vllm.RECORDER / f"{point.module.replace('.', '/')}.py").read_text().count(
            f"def {point.attr}("
        ) == 1


class TestFinding:
    def test_an_interpreter_without_vllm(self) -> None:
        assert vllm.find(sys.executable) is None
        with pytest.raises(BackendError, match="has no vLLM; install it there"):
            vllm.check(BASELINE)

    def test_no_such_interpreter(self, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match="no such interpreter"):
            vllm.find(str(tmp_path / "python"))

    def test_the_version_is_read_without_importing_vllm(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "vllm"
        (package / "entrypoints/openai").mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        (package / "_version.py").write_text("__version__ = version = '0.25.1'\n")
        (package / "entrypoints/openai/api_server.py").touch()
        (package / "engine").mkdir()
        (package / "engine/arg_utils.py").write_text('add_argument("--all2all-backend")')
        (package / "model_executor/layers/fused_moe/router").mkdir(parents=True)
        (package / "model_executor/layers/fused_moe/router/base_router.py").write_text(
            "def _compute_routing("
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        vllm._find.cache_clear()
        found = vllm.find(sys.executable)
        vllm._find.cache_clear()
        expected = Installed(
            sys.executable, "0.25.1", has_module=True, has_moe_flag=False, hook="_compute_routing"
        )
        assert found == expected
        assert expected.release == (0, 25)
        (package / "engine/arg_utils.py").write_text('moe_group.add_argument("--moe-backend")')
        newer = vllm.find(sys.executable)
        vllm._find.cache_clear()
        assert newer is not None
        assert newer.has_moe_flag


FLAGS = 'add_argument("--moe-backend")'
HOOK = "    def set_capture_fn(self, capture): ..."


@pytest.fixture
def source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a vLLM in it that has newer versions' flag and hook, and no _version.py."""
    package = tmp_path / "vllm"
    router = package / "model_executor/layers/fused_moe/router/base_router.py"
    for file, text in (
        (package / "__init__.py", "raise RuntimeError('imported')"),
        (package / "engine/arg_utils.py", FLAGS),
        (router, HOOK),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    vllm._find.cache_clear()
    yield package
    vllm._find.cache_clear()


@pytest.mark.parametrize(
    ("written", "version"),
    [
        ("__version__ = version = '0.1.dev1+g977180c.d20251201'", "0.1.dev1+g977180c.d20251201"),
        ("__version__ = version = '0.1.dev7557+g977180c'", "0.1.dev7557+g977180c"),
        ("__version__ = version = 'dev'", "dev"),
        ("__version__ = version = 'g977180c'", "g977180c"),
        ("__version__: str = '0.12.0'", "0.12.0"),
        ("__version__: str\nversion: str\n__version__ = version = '0.30.0'\n", "0.30.0"),
        ("", "(unknown version)"),
        (None, "(unknown version)"),
    ],
)
def test_a_build_from_source_is_taken_for_what_its_files_show(
    source_tree: Path, written: str | None, version: str
) -> None:
    if written is not None:
        (source_tree / "_version.py").write_text(written)
    found = vllm.check(BASELINE)
    assert (found.version, found.has_moe_flag, found.hook) == (version, True, "set_capture_fn")
    vllm.check_forcing(BASELINE)
    assert tail(BASELINE, version).endswith("--moe-backend triton")


def test_the_distribution_names_the_version_where_the_source_does_not(source_tree: Path) -> None:
    about = source_tree.parent / "vllm-0.27.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.27.3\n")
    assert vllm.check(BASELINE).version == "0.27.3"


def test_a_known_release_may_be_too_old_and_a_folder_is_no_vllm(source_tree: Path) -> None:
    (source_tree / "_version.py").write_text("__version__ = '0.10.2'")
    with pytest.raises(BackendError, match=r"vLLM 0\.10\.2 is too old; 0\.11 or newer"):
        vllm.check(BASELINE)
    vllm._find.cache_clear()
    (source_tree / "__init__.py").unlink()
    with pytest.raises(BackendError, match="has no vLLM"):
        vllm.check(BASELINE)


@pytest.mark.parametrize("version", ["dev", "g977180c", "0.1.dev1+g977180c", "(unknown version)"])
def test_no_default_kernel_is_made_up_for_an_unknown_version(tmp_path: Path, version: str) -> None:
    assert "moe_backend" not in vllm.ran({"version": version}, log_of(tmp_path))


ENGINE = (
    "(EngineCore pid=7) INFO 11-24 13:00:00 [core.py:115] Initializing a V1 LLM engine (v{version}) with config: "
    "model='m', dtype=torch.bfloat16, tensor_parallel_size={tp}, pipeline_parallel_size=1, data_parallel_size={dp}, "
    "quantization=None, enforce_eager=False, enable_prefix_caching=False, compilation_config={{'mode': 3, "
    "'cudagraph_mode': <CUDAGraphMode.{graphs}: (2, 1)>}}\n"
)
RECORDS = "INFO [worker.py:61] gatescope recorder: records 32 layers x 8 experts, top-2, dp 0 of 1, pp 0 of 1, hook x\n"


def log_of(
    folder: Path,
    *lines: str,
    version: str = "0.25.1",
    tp: int = 1,
    dp: int = 1,
    graphs: str = "NONE",
) -> Path:
    log = folder / "server.log"
    log.write_text(ENGINE.format(version=version, tp=tp, dp=dp, graphs=graphs) + "".join(lines))
    return log


class TestWhatRan:
    def test_all2all_as_requested(self, tmp_path: Path) -> None:
        log = log_of(
            tmp_path,
            "INFO [cuda_communicator.py:202] Using AgRsAll2AllManager all2all manager.\n",
            "INFO [expert_map_manager.py:246] [EP Rank 0/4] Expert parallelism is enabled. Expert placement …\n",
            "INFO [unquantized.py:203] Using FlashInfer CUTLASS Unquantized MoE backend out of potential backends: …\n",
            "INFO [unquantized.py:400] Using MoEPrepareAndFinalizeNaiveDPEPModular\n",
            "INFO [cuda.py:477] Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN'].\n",
            RECORDS,
            dp=4,
            graphs="FULL_AND_PIECEWISE",
        )
        ran = vllm.ran({"version": "0.25.1"}, log)
        assert ran == {
            "engine": "vllm",
            "version": "0.25.1",
            "dtype": "bfloat16",
            "tensor_parallel_size": "1",
            "pipeline_parallel_size": "1",
            "data_parallel_size": "4",
            "quantization": "None",
            "prefix_caching": "False",
            "cudagraph_mode": "FULL_AND_PIECEWISE",
            "all2all_backend": "AgRsAll2AllManager",
            "expert_parallel_size": "4",
            "moe_backend": "FlashInfer CUTLASS",
            "moe_prepare_finalize": "MoEPrepareAndFinalizeNaiveDPEPModular",
            "attention_backend": "FLASH_ATTN",
            "recorder": "records 32 layers x 8 experts, top-2, dp 0 of 1, pp 0 of 1, hook x",
        }
        assert vllm.mismatches(ALL2ALL, ran) == []

    def test_another_kernel_than_asked_for_is_named(self, tmp_path: Path) -> None:
        log = log_of(
            tmp_path,
            "Using TRITON Unquantized MoE backend out of …\n",
            RECORDS,
            dp=4,
            graphs="FULL",
        )
        assert vllm.mismatches(ALL2ALL, vllm.ran({"version": "0.25.1"}, log)) == [
            "requested moe_backend flashinfer_cutlass, running TRITON",
            "requested all2all_backend allgather_reducescatter; the server's log names no all2all manager",
            "requested expert_parallel_size 4, running 1",
        ]

    def test_upstreams_mistake_is_seen_in_its_version(self, tmp_path: Path) -> None:
        log = log_of(tmp_path, RECORDS, version="0.11.2", tp=4, graphs="NONE")
        backend = Backend(name="b", moe_backend="flashinfer_cutlass", enforce_eager=True)
        (sentence,) = vllm.mismatches(backend, vllm.ran({"version": "0.11.2"}, log))
        assert sentence.startswith("requested moe_backend flashinfer_cutlass, running TRITON")
        with open(log, "a") as more:
            more.write(
                "INFO [unquantized.py] Enabling FlashInfer CUTLASS MoE for UnquantizedFusedMoEMethod\n"
            )
        assert vllm.mismatches(backend, vllm.ran({"version": "0.11.2"}, log)) == []

    def test_the_kernels_line_of_015_is_not_taken_for_the_attentions(self, tmp_path: Path) -> None:
        log = log_of(
            tmp_path,
            "INFO [unquantized.py:103] Using FlashInfer CUTLASS backend for Unquantized MoE\n",
            "INFO [cuda.py:364] Using FLASH_ATTN attention backend out of potential backends: ('FLASH_ATTN',)\n",
            version="0.15.1",
        )
        ran = vllm.ran({"version": "0.15.1"}, log)
        assert (ran["moe_backend"], ran["attention_backend"]) == (
            "FlashInfer CUTLASS",
            "FLASH_ATTN",
        )
        log = log_of(
            tmp_path,
            "INFO [unquantized.py:103] Using TRITON backend for Unquantized MoE\n",
            version="0.15.1",
        )
        ran = vllm.ran({"version": "0.15.1"}, log)
        assert (ran["moe_backend"], "attention_backend" in ran) == ("TRITON", False)

    def test_missing_graphs_and_a_router_that_is_not_recorded_are_told(
        self, tmp_path: Path
    ) -> None:
        log = log_of(
            tmp_path,
            "Using TRITON Unquantized MoE backend\n",
            RECORDS,
            "gatescope recorder: disabled: Oops\n",
        )
        backend = Backend(name="b", tensor_parallel=1)
        assert vllm.mismatches(backend, vllm.ran({"version": "0.25.1"}, log)) == [
            "requested CUDA graphs (enforce_eager = false), running without them",
            "the router is not recorded: disabled: Oops",
        ]

    def test_an_earlier_start_in_the_same_log_is_forgotten(self, tmp_path: Path) -> None:
        log = log_of(tmp_path, "Using TRITON Unquantized MoE backend\n", tp=4)
        with open(log, "a") as more:
            more.write(
                "non-default args: {}\n"
                + ENGINE.format(version="0.25.1", tp=2, dp=1, graphs="FULL")
            )
        ran = vllm.ran({"version": "0.25.1"}, log)
        assert (ran["tensor_parallel_size"], "moe_backend" in ran) == ("2", False)


class TestWorkersOwnRecord:
    """What the recorder's workers write beside the gate logs, whatever the server logs."""

    FACTS: ClassVar = {
        "vllm": "0.25.1",
        "recorder": "records 32 layers x 8 experts, top-2, dp 0 of 1, pp 0 of 1, hook x",
        "forced_routing": "on for hot-experts~1; 1 ranks, seed 0",
        "tensor_parallel_size": "4",
        "data_parallel_size": "1",
        "expert_parallel_size": "1",
        "cudagraph_mode": "FULL",
    }

    @staticmethod
    def ran(folder: Path, log: Path, *facts: dict[str, str]) -> dict[str, str]:
        for number, about in enumerate(facts):
            file = folder / f"dp0_pp0_tp{number}.gatelog.about.json"
            file.write_text(json.dumps(about))
        return vllm.ran({"version": "0.25.1"}, log, 0, folder)

    def test_is_enough_where_the_log_is_silent(self, tmp_path: Path) -> None:
        (tmp_path / "server.log").touch()
        ran = self.ran(tmp_path, tmp_path / "server.log", self.FACTS)
        assert vllm.mismatches(BASELINE, ran) == []
        assert ran["recorder"] == self.FACTS["recorder"]
        assert ran["forced_routing"] == "on for hot-experts~1; 1 ranks, seed 0"
        assert "vllm" not in ran
        assert ran["log"] == "silent (its level or configuration hides what runs)"

    def test_does_not_hide_what_differs(self, tmp_path: Path) -> None:
        (tmp_path / "server.log").touch()
        facts = {**self.FACTS, "moe_backend": "FlashInfer CUTLASS", "tensor_parallel_size": "2"}
        ran = self.ran(tmp_path, tmp_path / "server.log", facts)
        assert vllm.mismatches(BASELINE, ran) == [
            "requested moe_backend triton, running FlashInfer CUTLASS",
            "requested tensor_parallel_size 4, running 2",
        ]

    def test_a_refusal_by_any_worker_counts(self, tmp_path: Path) -> None:
        log = log_of(tmp_path, RECORDS, "Using TRITON Unquantized MoE backend\n", tp=4)
        refused = {"forced_routing": "refused: no router", "recorder": "disabled: Oops"}
        ran = self.ran(tmp_path, log, self.FACTS, refused)
        assert (ran["forced_routing"], ran["recorder"]) == ("refused: no router", "disabled: Oops")
        assert "log" not in ran

    def test_a_damaged_one_is_left_to_the_log(self, tmp_path: Path) -> None:
        log = log_of(tmp_path, RECORDS)
        (tmp_path / "dp0_pp0_tp0.gatelog.about.json").write_text('{"recorder": ')
        assert self.ran(tmp_path, log)["recorder"].startswith("records 32 layers")

    def test_colours_and_carriage_returns_in_the_log_are_no_part_of_it(
        self, tmp_path: Path
    ) -> None:
        log = tmp_path / "server.log"
        log.write_bytes(
            b"\x1b[1;36m(Worker pid=7)\x1b[0;0m INFO Using TRITON \x1b[1mUnquantized MoE backend\r\n"
            b"Loading:  50%|##\rLoading: 100%|####\r\ngatescope recorder: records 2 layers\r\n"
        )
        ran = vllm.ran({"version": "0.25.1"}, log)
        assert (ran["moe_backend"], ran["recorder"]) == ("TRITON", "records 2 layers")


class TestChoice:
    """Which engine serves."""

    @pytest.fixture
    def _vllm_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            vllm, "find", lambda python: Installed("python", "0.25.1") if python else None
        )

    @pytest.mark.usefixtures("_vllm_here")
    def test_auto_takes_vllm_where_it_and_enough_gpus_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_nvml.install(tmp_path, monkeypatch)
        backends = [
            Backend(name=n, python="/x", tensor_parallel=size) for n, size in (("a", 2), ("b", 1))
        ]
        assert choice.decide("auto", backends) == "builtin"
        fake_nvml.show(H200)
        assert choice.decide("auto", backends) == "builtin"
        fake_nvml.show(H200, H200)
        assert choice.decide("auto", backends) == "vllm"
        assert choice.decide("auto", [*backends, Backend(name="c", tensor_parallel=1)]) == "builtin"
        hidden = Backend(
            name="d", python="/x", tensor_parallel=2, env={"CUDA_VISIBLE_DEVICES": "1"}
        )
        assert choice.decide("auto", [*backends, hidden]) == "builtin"

    def test_what_is_asked_for_is_taken(self) -> None:
        assert choice.decide("vllm", [BASELINE]) == "vllm"
        assert choice.decide("builtin", [BASELINE]) == "builtin"

    @pytest.mark.usefixtures("_vllm_here")
    def test_the_label_names_the_version_and_weights_that_are_none(self) -> None:
        both = [Backend(name="a", python="/x"), Backend(name="b", python="/x")]
        assert (
            choice.label("builtin", [BASELINE], Model(load_format="dummy"))
            == "builtin (NumPy, CPU)"
        )
        random = Model(weights="random")
        assert choice.label("builtin", [BASELINE], random) == "builtin (NumPy, CPU), random weights"
        assert choice.label("vllm", both, random) == "vllm 0.25.1"
        assert choice.label("vllm", both, Model()) == "vllm 0.25.1"
        assert (
            choice.label("vllm", both, Model(load_format="dummy")) == "vllm 0.25.1, dummy weights"
        )
        with pytest.raises(BackendError, match="has no vLLM"):
            choice.label("vllm", [BASELINE], Model())


class TestWarmup:
    @pytest.fixture
    def mixtral(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
        fake_nvml.install(tmp_path, monkeypatch, H200)
        (tmp_path / "config.json").write_text('{"num_local_experts": 8, "num_experts_per_tok": 2}')
        return Model(id=str(tmp_path), max_model_len=4096)

    def test_by_hand(self, mixtral: Model) -> None:
        """Steps nearest to 4096 tokens: 16 divides 2 × 4088 and 2 × 4092 − 8. With three idle ranks
        beside it a prompt of 4093 tokens makes a step of 4096, one of 4089 a step of 4092."""
        assert vllm.warmup_input_lens(BASELINE, mixtral)[-3:] == (4088, 4092, 4095)
        assert vllm.warmup_input_lens(ALL2ALL, mixtral)[-3:] == (4089, 4093, 4095)

    def test_a_step_holds_no_more_than_it_may(self, mixtral: Model) -> None:
        assert (
            vllm.warmup_input_lens(Backend(name="small", max_num_batched_tokens=64), mixtral)[-1]
            == 64
        )

    def test_none_without_a_gpu_or_a_known_model(self, mixtral: Model) -> None:
        fake_nvml.show()
        assert vllm.warmup_input_lens(BASELINE, mixtral) == ()
        assert vllm.warmup_skipped(BASELINE, Model(id="nobody/knows")) == ""
        fake_nvml.show(H200)
        assert vllm.warmup_skipped(BASELINE, mixtral) == ""
        assert vllm.warmup_input_lens(BASELINE, Model(id="nobody/knows")) == ()
        assert vllm.warmup_skipped(BASELINE, Model(id="nobody/knows")) == (
            "no warm-up of the MoE kernel: no config.json of nobody/knows on this machine names its"
            " experts and top-k; steps may stall while the kernel is compiled"
        )
