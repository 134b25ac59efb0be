"""The built-in engine's process: `python -m core.builtin.server`. Its options have vLLM's names if
they mean the same."""

from __future__ import annotations

import os
import sys

from core.builtin.options import parse

ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def main() -> None:
    """Serve until a signal arrives."""
    options = parse(sys.argv[1:])
    # BLAS reads these once, when NumPy is imported. A rank is one thread, else the ranks would
    # compete for the cores.
    os.environ.update(ONE_THREAD)
    from core.builtin.serving import serve

    sys.exit(
        serve(
            options,
            os.environ.get("VLLM_API_KEY", ""),
            os.environ.get("GATESCOPE_FORCED_ROUTING", ""),
        )
    )


if __name__ == "__main__":
    main()
