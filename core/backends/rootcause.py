"""Why a server died, in one sentence, from the lines of its log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from core.backends.serverlog import shown

MOST_CHARACTERS = 300

# A worker's failure comes first; its parents then only echo it. pydantic gives the reason a line
# later.
ECHOES = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|EngineDeadError|"
    r"EngineCore encountered|RuntimeError: cancelled|(?:Base)?ExceptionGroup: |"
    r"Engine process failed to start|Executor failed|CancelledError|BrokenPipeError|"
    r"ConnectionResetError|SystemExit|KeyboardInterrupt|"
    r"ValidationError: \d+ validation error"
)
PROCESS = re.compile(r"^\([^)]*pid=\d+\)\s?")
LEVEL = re.compile(r"^(ERROR|CRITICAL|WARNING|INFO|DEBUG) [\d-]+ [\d:.,]+ \[[^\]]*\]\s?")
HANDLED = ("WARNING", "INFO", "DEBUG")  # what is logged at these levels has been dealt with
TRACEBACK = re.compile(r"^(?:Exception Group )?Traceback \(most recent call last\):")
GROUP = re.compile(
    r"^(?:\s*(?:\+-[+-]*(?: \d+ )?-*|[|+] ?))+"
)  # the frame drawn around its members
EXCEPTION = re.compile(
    r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Failure|Exit)\b: \S|^Value error, |"
    r"^Fatal Python error: "
)
RAISED = re.compile(r"^[A-Za-z_][\w.]*(?::\s|:?$)")  # ends a traceback: any class, also bare
STATEMENT = re.compile(r"^[^:]+: error: |^ERROR:\s|^Worker proc .* died")  # argparse's, uvicorn's
NODE = re.compile(r"^ERROR: gatescope: (node .+)")  # of node.py
WEAK = re.compile(r"^Engine core proc \S+ died unexpectedly")  # it may have said why, or not
FRAME = re.compile(r'^File "([^"]+)", line (\d+)')
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
        (
            r"Worker proc (\S+) died",
            r"\1 died without an error of its own: the kernel may have killed it for memory"
            r" (see dmesg), or a driver did",
        ),
        (
            r"in use \(addr='\w+://[^']*?:(\d+)'\)",
            r"port \1, which vLLM's processes talk over, is taken; start again, or end what"
            r" holds it",
        ),
        (
            r"server socket has failed to listen on .*?port: (\d+).*(?:EADDRINUSE|in use)",
            r"port \1, which PyTorch's ranks meet at, is taken; start again, or end what holds it",
        ),
        (r"address already in use", r"address already in use"),
        (
            r"GatedRepoError|access a gated repo",
            r"the hub gives this model only to those who accepted its terms; accept them, and put"
            r" HF_TOKEN into the environment",
        ),
        (
            r"Could not find nvcc|ninja build failed|ninja.*returned non-zero",
            r"FlashInfer could not build its CUDA kernels (nvcc or ninja fails; see the log);"
            r" install flashinfer-jit-cache or a CUDA toolkit",
        ),
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
            r"Free memory on device (?:\S+ )?\(([\d.]+)/([\d.]+) GiB\)",
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


@dataclass(slots=True)
class _Traceback:
    """One that a process is writing: its last frame so far, and the source line there. Of some only
    frames are seen, without the line that opens it."""

    is_opened: bool = False
    file: str = ""
    line: str = ""
    source: str = ""


def find(lines: Iterable[str]) -> str:
    """`cause`, else the last line. Empty where there are no lines."""
    found, last = _read(lines)
    return found or _cut(last)


def cause(lines: Iterable[str]) -> str:
    """A known failure in our words, else the first exception that is not an echo of another. Empty
    where there is none."""
    return _read(lines)[0]


def node(lines: Iterable[str]) -> str:
    """Which node of a server of several ended first, and how; empty where none is blamed."""
    hits = [hit[1] for line in lines if (hit := NODE.match(shown(line)))]
    return _cut(hits[-1]) if hits else ""


def _read(lines: Iterable[str]) -> tuple[str, str]:
    """The cause, and the last line."""
    first = weak = last = ""
    open_tracebacks: dict[str, _Traceback] = {}  # of each process: their lines mix
    for line in lines:
        process, level, whole = _parts(shown(line))
        text = whole.strip()
        if not text:
            continue
        last = text
        if level in HANDLED:
            continue
        if TRACEBACK.match(text):
            open_tracebacks[process] = _Traceback(is_opened=True)
            continue
        within = open_tracebacks.setdefault(process, _Traceback())
        ends = within.is_opened and whole == text and bool(RAISED.match(text))
        is_exception = (ends or bool(EXCEPTION.match(text))) and not ECHOES.search(text)
        if (is_exception or STATEMENT.match(text)) and (sentence := _known(text)):
            return sentence, last
        if is_exception and not first:
            first = _described(text, within)
        if WEAK.match(text):
            weak = weak or text
        if ends:
            del open_tracebacks[process]
        else:
            _follow(within, text)
    return _cut(PYDANTIC.sub("", first or weak)), last


def _parts(line: str) -> tuple[str, str, str]:
    """The process that wrote a line, the level, and what it wrote, indented as it is; the frame of
    an exception group is taken off."""
    process = hit[0].strip() if (hit := PROCESS.match(line)) else ""
    rest = PROCESS.sub("", line)
    level = hit[1] if (hit := LEVEL.match(rest)) else ""
    rest = LEVEL.sub("", rest)
    return process, level, GROUP.sub("", rest) if GROUP.match(rest) else rest


def _follow(traceback: _Traceback, text: str) -> None:
    if hit := FRAME.match(text):
        traceback.file, traceback.line, traceback.source = hit[1], hit[2], ""
    elif not traceback.source:
        traceback.source = text


def _described(text: str, raised: _Traceback) -> str:
    if "tokeniz" in raised.file:
        return f"the model's tokenizer cannot be loaded: {text}"
    if ": " in text or not raised.file:
        return text
    # A bare class says nothing: where it was raised does.
    at = f"{raised.file.rpartition('/')[2]}, line {raised.line}"
    return f"{text.rstrip(':')}: {raised.source} ({at})" if raised.source else f"{text} at {at}"


def _known(text: str) -> str:
    return next(
        (_cut(hit.expand(meant)) for said, meant in KNOWN if (hit := said.search(text))), ""
    )


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
