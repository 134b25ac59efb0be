"""Why a server died, in one sentence, from the lines of its log."""

from __future__ import annotations

import re
from collections.abc import Iterable

MOST_CHARACTERS = 300

# A worker's failure comes first; its parents then only echo it. pydantic gives the reason a line
# later.
ECHOES = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|EngineDeadError|"
    r"EngineCore encountered|"
    r"Engine process failed to start|Executor failed|CancelledError|BrokenPipeError|"
    r"ConnectionResetError|SystemExit|"
    r"ValidationError: \d+ validation error"
)
PREFIX = re.compile(
    r"^(?:\([^)]*pid=\d+\)\s*)?(?:(?:ERROR|CRITICAL|WARNING|INFO) [\d-]+ [\d:.,]+ \[[^\]]*\]\s?)?"
)
EXCEPTION = re.compile(
    r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Failure|Exit)\b: \S|^Value error, "
)
STATEMENT = re.compile(r"^[^:]+: error: |^ERROR:\s")  # argparse's, uvicorn's
FRAME = re.compile(r'^File "([^"]+)"')
PYDANTIC = re.compile(r"^Value error, | \[type=\w+, input_value=.*$")

# Messages of vLLM 0.11 to 0.32, and what each means here; the first hit counts.
KNOWN = tuple(
    (re.compile(said, re.IGNORECASE), meant)
    for said, meant in (
        (r"unrecognized arguments: (.+)", r"the server does not know \1; see extra_args"),
        (
            r"argument (-\S+?)(?:/\S+)?: invalid choice: '?(\S+?)'? \(choose from (.+)\)",
            r"the server knows no \1 \2; it has \3",
        ),
        (
            r": error: ((?:argument|the following arguments) .+)",
            r"the server refuses its command line: \1",
        ),
        (
            r"MoE backend '?([\w .]+?)'? does not support the deployment configuration(?: "
            r"since (.+?))?\.?$",
            r"the MoE kernel \1 cannot run here: \2; choose another moe_backend",
        ),
        (
            r"max_model_len \((\d+)\) is greater than the derived max_model_len \(\w+=(\d+)",
            r"max_model_len = \1 is more than the model's \2; lower it in [model]",
        ),
        (r"address already in use", r"address already in use"),
        (
            r"Cannot find any model weights with [`']([^`']+)",
            r'no weights are in \1; put *.safetensors there, or set load_format = "dummy"',
        ),
        (r"SafetensorError: (.+)", r"a file of weights is damaged (\1); fetch the model again"),
        (
            r"weights were not initialized from checkpoint: \{([^,}]+)",
            r"the weights do not fit the model's config.json: nothing is there for \1 and "
            r"maybe others",
        ),
        (
            r"Couldn't instantiate the backend tokenizer",
            r"the model has no tokenizer; put tokenizer.json or tokenizer.model into its folder",
        ),
        (
            r"Invalid repository ID or local directory specified: '([^']+)'",
            r"\1 is no model: id in [model] names a folder with config.json, or a model at the hub",
        ),
        (
            r"Repo id must be in the form .*?: '([^']+)'",
            r"there is no folder \1: id in [model] names a folder with config.json, or a "
            r"model at the hub",
        ),
        (
            r"LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't connect to '?http",
            r"the model is not here, and the hub is switched off or out of reach; name a "
            r"folder as id in [model]",
        ),
        (
            r"has model type `([^`]+)` but Transformers does not recognize",
            r"this environment's transformers knows no models of type \1; a newer one may",
        ),
        (
            r"Model architectures (\[[^\]]*\]) are not supported",
            r"this vLLM cannot run models of type \1",
        ),
        (
            r"attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)",
            r"tensor_parallel = \2 does not divide the model's \1 attention heads",
        ),
        (
            r"World size \((\d+)\) is larger than the number of available GPUs \((\d+)\)",
            r"\1 ranks were asked for, and \2 GPUs are here; lower tensor_parallel or "
            r"data_parallel",
        ),
        (
            r"CUDA out of memory\. Tried to allocate ([\d.]+ \w+)",
            r"CUDA out of memory (\1 more were wanted); lower max_num_batched_tokens, or "
            r"use more ranks",
        ),
        (
            r"CUDA(?: error:)? out of memory",
            r"CUDA out of memory; lower max_num_batched_tokens, or use more ranks",
        ),
        (
            r"Free memory on device \S+ \(([\d.]+)/([\d.]+) GiB\)",
            r"only \1 of a GPU's \2 GiB are free; nvidia-smi names the process that holds the rest",
        ),
        (
            r"No available memory for the cache blocks",
            r"no memory is left for the KV cache; raise --gpu-memory-utilization in "
            r"extra_args, or use more ranks",
        ),
        (
            r"max seq len \((\d+)\), .*?([\d.]+ GiB) KV cache is needed, .*?available KV "
            r"cache memory \(([\d.]+ GiB)\)",
            r"a request of max_model_len = \1 needs \2 of KV cache, and there are \3; lower "
            r"it in [model]",
        ),
        (
            r"Not enough allowed NUMA nodes",
            r"there is no NUMA node for each rank; give each its cores: env = { "
            r'VLLM_CPU_OMP_THREADS_BIND = "0|1" }',
        ),
    )
)


def find(lines: Iterable[str]) -> str:
    """A known failure in our words, else the first exception that is not an echo of another, else
    the last line. Empty where there are no lines."""
    first = last = frame = ""
    for line in lines:
        text = PREFIX.sub("", line).strip()
        if not text:
            continue
        last = text
        if hit := FRAME.match(text):
            frame = hit.group(1)
        is_exception = bool(EXCEPTION.match(text)) and not ECHOES.search(text)
        if not (is_exception or STATEMENT.match(text)):
            continue
        if sentence := _known(text):
            return sentence
        if is_exception and not first:
            first = (
                f"the model's tokenizer cannot be loaded: {text}" if "tokeniz" in frame else text
            )
    return _cut(PYDANTIC.sub("", first or last))


def _known(text: str) -> str:
    return next(
        (_cut(hit.expand(meant)) for said, meant in KNOWN if (hit := said.search(text))), ""
    )


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
