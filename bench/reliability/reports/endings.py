"""How logs of vLLM servers end that failed at their start, whole: the worker's traceback, the
engine's and the API server's; and the sentence that gatescope must find. Those of the test suite
(tests/backends/test_rootcause.py) hold only the lines that count."""

from __future__ import annotations

WORKER = "(Worker_TP0 pid=11) ERROR 11-30 10:00:00 [multiproc_executor.py:700] "
CORE = "(EngineCore_DP0 pid=9) ERROR 11-30 10:00:01 [core.py:708] "
API = "(APIServer pid=1) "
FAILED = (
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
)
TRACEBACK = "Traceback (most recent call last):"
TAIL = [
    CORE + FAILED + "{'EngineCore_DP0': 1}",
    API + TRACEBACK,
    API + '  File "/v/vllm/v1/engine/utils.py", line 951, in wait_for_engine_startup',
    API + FAILED + "{}",
]
LAYER = '  File "/v/vllm/model_executor/layers/fused_moe/layer.py", line 1012, in __init__'


def raised(*lines: str, by: str = WORKER) -> list[str]:
    return [by + TRACEBACK, by + LAYER, *(by + line for line in lines), *TAIL]


def coloured(who: str, text: str, level: str = "ERROR 11-30 10:00:00 [core.py:708] ") -> str:
    return f"\x1b[1;36m({who} pid=9)\x1b[0;0m {level}{text}"


FREE = "is less than desired GPU memory utilization (0.9, 71.2 GiB)."
ENDINGS: dict[str, tuple[list[str], str]] = {
    "zmq: a port of the DP coordinator": (
        raised("zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:29550')"),
        "port 29550, which vLLM's processes talk over, is taken; start again, or end what holds it",
    ),
    "the API's port was taken meanwhile": (
        [API + "OSError: [Errno 98] Address already in use"],
        "address already in use",
    ),
    "a gated repository": (
        raised(
            "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-a;b)",
            "",
            "Cannot access gated repo for url https://huggingface.co/x/y/resolve/main/config.json.",
            "OSError: You are trying to access a gated repo.",
            "Make sure to have access to it at https://huggingface.co/x/y.",
            by=API,
        ),
        "the hub gives this model only to those who accepted its terms; accept them, and"
        " put HF_TOKEN into the environment",
    ),
    "free memory, 0.11": (
        raised(
            f"ValueError: Free memory on device (5.21/79.11 GiB) on startup {FREE} Decrease it."
        ),
        "only 5.21 of a GPU's 79.11 GiB are free; nvidia-smi names the process that holds the rest",
    ),
    "free memory, newer": (
        raised(f"ValueError: Free memory on device cuda:0 (5.21/79.11 GiB) on startup {FREE}"),
        "only 5.21 of a GPU's 79.11 GiB are free; nvidia-smi names the process that holds the rest",
    ),
    "a bare assertion": (
        raised("    assert self.global_num_experts % self.ep_size == 0", "AssertionError"),
        "AssertionError: assert self.global_num_experts % self.ep_size == 0 (layer.py, line 1012)",
    ),
    "a KeyError of weights": (
        raised("    param = params_dict[name]", "KeyError: 'layers.1.mlp.experts.w13_weight'"),
        "KeyError: 'layers.1.mlp.experts.w13_weight'",
    ),
    "no nvcc for the JIT": (
        raised(
            "RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't"
            " exist"
        ),
        "FlashInfer could not build its CUDA kernels (nvcc or ninja fails; see the log);"
        " install flashinfer-jit-cache or a CUDA toolkit",
    ),
    "ninja failed": (
        raised(
            "RuntimeError: Ninja build failed. Ninja output:",
            "ninja: error: loading 'build.ninja': No such file or directory",
        ),
        "FlashInfer could not build its CUDA kernels (nvcc or ninja fails; see the log);"
        " install flashinfer-jit-cache or a CUDA toolkit",
    ),
    "VLLM_PORT is a URI": (
        [API + "ValueError: VLLM_PORT 'tcp://10.43.0.1:8000' appears to be a URI. This may be so"],
        "ValueError: VLLM_PORT 'tcp://10.43.0.1:8000' appears to be a URI. This may be so",
    ),
    "CUDA is out of memory": (
        raised(
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.75 GiB. GPU 0 has a"
            " total capacity of 79.11 GiB of which 1.02 GiB is free. Process 4242 has 70.10 GiB"
            " memory in use."
        ),
        "CUDA out of memory (1.75 GiB more were wanted); lower max_num_batched_tokens,"
        " or use more ranks",
    ),
    "a subprocess": (
        raised(
            "subprocess.CalledProcessError: Command '['ninja', '-v']' returned non-zero exit"
            " status 1."
        ),
        "FlashInfer could not build its CUDA kernels (nvcc or ninja fails; see the log);"
        " install flashinfer-jit-cache or a CUDA toolkit",
    ),
    "EPLB's divisibility": (
        raised("ValueError: Number of physical experts (130) must be divisible by the ep size (4)"),
        "ValueError: Number of physical experts (130) must be divisible by the ep size (4)",
    ),
    "Python's own fatal error": (
        [
            "Fatal Python error: Segmentation fault",
            "",
            "Thread 0x00007f (most recent call first):",
            '  File "/v/vllm/x.py", line 3 in f',
        ],
        "Fatal Python error: Segmentation fault",
    ),
    "a coloured log": (
        [
            coloured("EngineCore_DP0", TRACEBACK),
            coloured("EngineCore_DP0", '  File "/v/x.py", line 3, in f'),
            coloured(
                "EngineCore_DP0",
                "ValueError: No available memory for the cache blocks. Try increasing"
                " `gpu_memory_utilization` when initializing the engine.",
            ),
            coloured("EngineCore_DP0", "Process EngineCore_DP0:", ""),
            coloured("APIServer", TRACEBACK, ""),
            coloured("APIServer", FAILED + "{}", ""),
        ],
        "no memory is left for the KV cache; raise --gpu-memory-utilization in extra_args, or use"
        " more ranks",
    ),
}
