"""The part of a vLLM server that runs on a node other than the first, as `vllm serve --headless`
does. Run by its path, in vLLM's own environment."""

from __future__ import annotations


def main() -> None:
    from vllm.entrypoints.cli.serve import run_headless

    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:
        from vllm.utils import FlexibleArgumentParser
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    asked = make_arg_parser(FlexibleArgumentParser()).parse_args()
    asked.api_server_count = 0
    run_headless(asked)


if __name__ == "__main__":
    main()
