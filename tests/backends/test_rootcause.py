"""Each failure was provoked on vLLM 0.30 for CPUs, but those of GPUs; the lines are cut to what
counts."""

from __future__ import annotations

import pytest

from core.backends import rootcause

WORKER = "(Worker pid=20) ERROR 11-24 17:04:55 [multiproc_executor.py:944] "
CORE = "(EngineCore_DP0 pid=77) ERROR 11-24 13:00:01 [core.py:708] "
API = "(APIServer pid=19) "
USAGE = "usage: api_server.py [-h] [--headless]"
PYDANTIC = API + "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig"
ECHO = (
    API
    + "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
)
HUB_FRAME = (
    API + '  File "/env/site-packages/huggingface_hub/utils/_validators.py", line 89, in _inner_fn'
)

DEATHS = {
    "a flag that it does not know": (
        [USAGE, "api_server.py: error: unrecognized arguments: --no-such-flag --nor-this 1"],
        "the server does not know --no-such-flag --nor-this 1; see extra_args",
    ),
    "a value that it does not know": (
        [
            USAGE,
            "api_server.py: error: argument --dtype: invalid choice: 'bfloat61' (choose from 'auto', 'bfloat16')",
        ],
        "the server knows no --dtype bfloat61; it has 'auto', 'bfloat16'",
    ),
    "a value of the wrong kind": (
        [USAGE, "api_server.py: error: argument --seed: invalid int value: 'x'"],
        "the server refuses its command line: argument --seed: invalid int value: 'x'",
    ),
    "a kernel that cannot run here": (
        [
            WORKER + "    raise ValueError(_make_log_unsupported(backend, reason))",
            WORKER
            + "ValueError: Unquantized MoE backend TRITON does not support the deployment configuration since kernel"
            " does not support current device cpu.",
            CORE
            + "Exception: WorkerProc initialization failed due to an exception in a background process.",
            ECHO,
        ],
        "the MoE kernel TRITON cannot run here: kernel does not support current device cpu; choose another moe_backend",
    ),
    "a context longer than the model's": (
        [
            PYDANTIC,
            API
            + "  Value error, User-specified max_model_len (20480) is greater than the derived max_model_len"
            " (max_position_embeddings=2048.0 or model_max_length=None in model's config.json). To allow overriding …",
            API + "    For further information visit …",
        ],
        "max_model_len = 20480 is more than the model's 2048; lower it in [model]",
    ),
    "a folder without weights": (
        [WORKER + "RuntimeError: Cannot find any model weights with `/models/tiny`", ECHO],
        'no weights are in /models/tiny; put *.safetensors there, or set load_format = "dummy"',
    ),
    "a file of weights that was cut": (
        [
            WORKER
            + "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: invalid header length",
            ECHO,
        ],
        "a file of weights is damaged (Error while deserializing header: invalid header length); fetch the model again",
    ),
    "weights of another model": (
        [
            WORKER + "ValueError: Following weights were not initialized from checkpoint:"
            " {'model.layers.4.input_layernorm.weight', 'model.layers.5.input_layernorm.weight'}",
            ECHO,
        ],
        "the weights do not fit the model's config.json: nothing is there for 'model.layers.4.input_layernorm.weight'"
        " and maybe others",
    ),
    "no tokenizer": (
        [
            API
            + '  File "/env/site-packages/transformers/tokenization_utils_tokenizers.py", line 422, in __init__',
            API + "    raise ValueError(",
            API + "ValueError: Couldn't instantiate the backend tokenizer from one of: ",
            API + "(1) a `tokenizers` library serialization file, ",
        ],
        "the model has no tokenizer; put tokenizer.json or tokenizer.model into its folder",
    ),
    "a tokenizer that is none": (
        [
            API
            + '  File "/env/site-packages/transformers/tokenization_utils_base.py", line 1948, in _from_pretrained',
            API + '    added_tokens = tokenizer_file_handle.pop("added_tokens")',
            API + "KeyError: 'added_tokens'",
        ],
        "the model's tokenizer cannot be loaded: KeyError: 'added_tokens'",
    ),
    "a folder without config.json": (
        [
            PYDANTIC,
            API
            + "  Value error, Invalid repository ID or local directory specified: '/models/tiny'.",
        ],
        "/models/tiny is no model: id in [model] names a folder with config.json, or a model at the hub",
    ),
    "a folder that is not there": (
        [
            HUB_FRAME,
            API
            + "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or"
            " 'namespace/repo_name': '/models/none'. Use `repo_type` argument if needed.",
            API + "The above exception was the direct cause of the following exception:",
        ],
        "there is no folder /models/none: id in [model] names a folder with config.json, or a model at the hub",
    ),
    "a model that is not on the machine": (
        [
            HUB_FRAME,
            API
            + "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for"
            " the specified revision on the local disk and outgoing traffic has been disabled.",
        ],
        "the model is not here, and the hub is switched off or out of reach; name a folder as id in [model]",
    ),
    "a kind of model that transformers does not know": (
        [
            PYDANTIC,
            API
            + "  Value error, The checkpoint you are trying to load has model type `nope` but Transformers does not"
            " recognize this architecture. This could be because of an issue with the checkpoint.",
        ],
        "this environment's transformers knows no models of type nope; a newer one may",
    ),
    "a layout that does not divide the model": (
        [
            PYDANTIC,
            API
            + "  Value error, Total number of attention heads (8) must be divisible by tensor parallel size (3)."
            " [type=value_error, input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]",
        ],
        "tensor_parallel = 3 does not divide the model's 8 attention heads",
    ),
    "another objection of a config class": (
        [
            PYDANTIC,
            API
            + "  Value error, This and that. [type=value_error, input_value=ArgsKwargs((), {'a': 1})]",
        ],
        "This and that.",
    ),
    "ranks without NUMA nodes": (
        [
            WORKER
            + "AssertionError: Not enough allowed NUMA nodes to bind threads of 2 local CPUWorkers.",
            ECHO,
        ],
        'there is no NUMA node for each rank; give each its cores: env = { VLLM_CPU_OMP_THREADS_BIND = "0|1" }',
    ),
    "a GPU that is full": (
        [
            WORKER + "Traceback (most recent call last):",
            WORKER
            + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total …",
            CORE
            + "Exception: WorkerProc initialization failed due to an exception in a background process.",
            ECHO,
        ],
        "CUDA out of memory (2.00 GiB more were wanted); lower max_num_batched_tokens, or use more ranks",
    ),
    "a GPU whose driver has no room": (
        [WORKER + "torch.AcceleratorError: CUDA error: out of memory", ECHO],
        "CUDA out of memory; lower max_num_batched_tokens, or use more ranks",
    ),
    "a GPU that another process holds": (
        [
            CORE
            + "ValueError: Free memory on device cuda:0 (3.1/139.8 GiB) on startup is less than desired GPU memory"
            " utilization (0.9, 125.8 GiB). Decrease GPU memory utilization or reduce …",
            ECHO,
        ],
        "only 3.1 of a GPU's 139.8 GiB are free; nvidia-smi names the process that holds the rest",
    ),
    "no room for the KV cache": (
        [
            CORE
            + "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` …",
            ECHO,
        ],
        "no memory is left for the KV cache; raise --gpu-memory-utilization in extra_args, or use more ranks",
    ),
    "more ranks than GPUs": (
        [
            API
            + "  Value error, World size (8) is larger than the number of available GPUs (2) in this node."
        ],
        "8 ranks were asked for, and 2 GPUs are here; lower tensor_parallel or data_parallel",
    ),
    "a port in use": (
        [
            "ERROR:    [Errno 98] error while attempting to bind: address already in use",
            "later line",
        ],
        "address already in use",
    ),
    "no vLLM in that environment": (
        [
            "/usr/bin/python3: Error while finding module",
            "ModuleNotFoundError: No module named 'vllm'",
        ],
        "ModuleNotFoundError: No module named 'vllm'",
    ),
    "a handled failure before the known one": (
        [
            "ImportError: no flash attention here",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB",
        ],
        "CUDA out of memory (1 GiB more were wanted); lower max_num_batched_tokens, or use more ranks",
    ),
    "a warning that speaks of what could go wrong": (
        [
            "WARNING 11-24 [utils.py:299] This can cause errors such as CUDA out of memory",
            "ValueError: something else",
        ],
        "ValueError: something else",
    ),
    "an assertion that says nothing": (
        [
            CORE + "Traceback (most recent call last):",
            WORKER + "Traceback (most recent call last):",
            WORKER + '  File "/env/vllm/layer.py", line 1012, in __init__',
            CORE + '  File "/env/vllm/core.py", line 7, in run',
            WORKER + "    assert self.global_num_experts % self.ep_size == 0",
            WORKER + "           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^",
            WORKER + "AssertionError",
            CORE + "    raise Exception",
            ECHO,
        ],
        "AssertionError: assert self.global_num_experts % self.ep_size == 0 (layer.py, line 1012)",
    ),
    "a method that is not there": (
        [
            CORE + "Traceback (most recent call last):",
            CORE + '  File "/env/vllm/kernel.py", line 3, in apply',
            CORE + "    raise NotImplementedError",
            CORE + "NotImplementedError",
            ECHO,
        ],
        "NotImplementedError: raise NotImplementedError (kernel.py, line 3)",
    ),
    "a class in lower case": (
        [
            CORE + "Traceback (most recent call last):",
            CORE + '  File "/env/x.py", line 3, in f',
            CORE + "    unpack(data)",
            CORE + "struct.error: unpack requires a buffer of 4 bytes",
            ECHO,
        ],
        "struct.error: unpack requires a buffer of 4 bytes",
    ),
    "a class that is no Error": (
        [
            CORE + "Traceback (most recent call last):",
            CORE + "    run()",
            CORE + "triton.runtime.errors.OutOfResources: out of resource: shared memory",
            ECHO,
        ],
        "triton.runtime.errors.OutOfResources: out of resource: shared memory",
    ),
    "a group of exceptions": (
        [
            API + "  + Exception Group Traceback (most recent call last):",
            API + '  |   File "/env/run.py", line 9, in main',
            API + "  |     async with TaskGroup() as group:",
            API + "  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)",
            API + "  +-+---------------- 1 ----------------",
            API + "    | Traceback (most recent call last):",
            API + '    |   File "/env/serve.py", line 5, in serve',
            API + "    |     assert ready",
            API + "    | AssertionError",
            API + "    +------------------------------------",
        ],
        "AssertionError: assert ready (serve.py, line 5)",
    ),
    "a worker that was killed": (
        [
            CORE + "Worker proc VllmWorker-1 died unexpectedly, shutting down executor.",
            CORE + "Traceback (most recent call last):",
            CORE + "RuntimeError: cancelled",
            API + "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
        ],
        "VllmWorker-1 died without an error of its own: the kernel may have killed it for memory"
        " (see dmesg), or a driver did",
    ),
    "an engine that was killed": (
        [
            API + "ERROR 11-24 13:00:01 [core_client.py:1] Engine core proc EngineCore_DP0 died"
            " unexpectedly, shutting down client.",
            API + "EngineDeadError: EngineCore encountered an issue. See stack trace (above).",
            API + "Application shutdown complete.",
        ],
        "Engine core proc EngineCore_DP0 died unexpectedly, shutting down client.",
    ),
    "a port between vLLM's processes": (
        [
            CORE + "zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:29550')",
            ECHO,
        ],
        "port 29550, which vLLM's processes talk over, is taken; start again, or end what holds it",
    ),
    "a port that PyTorch's ranks meet at": (
        [
            WORKER
            + "torch.distributed.DistNetworkError: The server socket has failed to listen on any local"
            " network address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message:"
            " address already in use",
            ECHO,
        ],
        "port 29500, which PyTorch's ranks meet at, is taken; start again, or end what holds it",
    ),
    "a failure that was dealt with": (
        [
            "WARNING 11-24 17:04:55 [x.py:9] Traceback (most recent call last):",
            "WARNING 11-24 17:04:55 [x.py:9] ImportError: no deep_gemm",
            CORE + "ValueError: something else",
        ],
        "ValueError: something else",
    ),
    "colours and carriage returns": (
        [
            "\x1b[1;36m(EngineCore_DP0 pid=9)\x1b[0;0m ERROR 11-30 10:00:00 [core.py:708]"
            " ValueError: No available memory for the cache blocks.\r",
            "\x1b[1;36m(APIServer pid=9)\x1b[0;0m RuntimeError: Engine core initialization failed.\r",
        ],
        "no memory is left for the KV cache; raise --gpu-memory-utilization in extra_args, or use"
        " more ranks",
    ),
    "a model that needs its terms accepted": (
        [API + "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1)"],
        "the hub gives this model only to those who accepted its terms; accept them, and put"
        " HF_TOKEN into the environment",
    ),
    "a kernel that crashes": (
        ["Fatal Python error: Segmentation fault", "", '  File "/v/x.py", line 3 in f'],
        "Fatal Python error: Segmentation fault",
    ),
    "nothing that looks like a failure": (["Loading weights", "Killed"], "Killed"),
    "no line at all": ([], ""),
}


@pytest.mark.parametrize("case", DEATHS)
def test_is_one_sentence(case: str) -> None:
    lines, sentence = DEATHS[case]
    assert rootcause.find(lines) == sentence


def test_is_cut_to_what_a_screen_can_hold() -> None:
    assert len(rootcause.find(["ValueError: " + "x" * 1000])) == rootcause.MOST_CHARACTERS
