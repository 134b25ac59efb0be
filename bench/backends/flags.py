"""Whether vLLM's own parser takes the command lines of every backend of the experiments here.

    python3 bench/backends/flags.py [MODEL_FOLDER]

For each [[backends]] of bench/backends/*.toml and the root's experiments.toml, with a local model
folder (/tmp/mixtral) in place of the model: the words are parsed, and vLLM makes its configuration
of them. Starts no server; what needs more GPUs than there are, vLLM may refuse.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import tomllib

import msgspec
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

try:
    from vllm.entrypoints.openai import cli_args
except ImportError:  # newer than 0.25
    from vllm.entrypoints.launchers import cli_args

from core.backends import vllm
from core.experiment.tables import Backend, Model


def said(words: list[str]) -> str:
    parser = cli_args.make_arg_parser(FlexibleArgumentParser())
    try:
        parsed = parser.parse_args(words)
        cli_args.validate_parsed_serve_args(parsed)
    except SystemExit:
        return "NOT PARSED"
    try:
        made = AsyncEngineArgs.from_cli_args(parsed).create_engine_config()
    except Exception as error:
        return f"parsed; no configuration here: {' '.join(str(error).split())[:300]}"
    ranks = made.parallel_config
    return (
        f"parsed; TP {ranks.tensor_parallel_size}, DP {ranks.data_parallel_size}, EP"
        f" {ranks.enable_expert_parallel}, EPLB {ranks.enable_eplb}"
        f" ({ranks.eplb_config.num_redundant_experts} redundant),"
        f" {parsed.api_server_count or 1} API servers"
    )


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else "/tmp/mixtral"
    for file in [ROOT / "experiments.toml", *sorted(Path(__file__).parent.glob("*.toml"))]:
        for table in tomllib.loads(file.read_text()).get("backends", []):
            backend = msgspec.convert(table, Backend)
            model = Model(id=folder, load_format="dummy")
            launch = vllm.launch(backend, model, None, 0)
            words = launch.command[launch.command.index("--host") :]
            print(f"{file.name} {backend.name}: {said(['--model', folder, *words])}", flush=True)


if __name__ == "__main__":
    main()
