"""Start-up time: `gatescope --help` against `python -c "import numpy"` of the same interpreter.

    uv run python bench/startup/startup.py [ROUNDS]

The commands take turns. Prints medians, quartiles and the ratio to the named peer. Exit code 1 if
the claim (a ratio under 2) does not hold.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

CLAIM = 2.0
PEER = 'python -c "import numpy"'
SCRIPT = Path(sys.executable).with_name("gatescope")
COMMANDS = {
    PEER: [sys.executable, "-c", "import numpy"],
    "gatescope --help": [str(SCRIPT), "--help"],
    "gatescope predict --help": [str(SCRIPT), "predict", "--help"],
    "gatescope (a mistake)": [str(SCRIPT), "--backnd"],
}


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - begin


def main(rounds: int) -> int:
    """Measure every command once a round, so that a busy moment affects all of them alike."""
    for command in COMMANDS.values():  # unmeasured: it fills the byte code and page caches
        seconds(command)
    taken = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(rounds)]
    peer = statistics.median(t[PEER] for t in taken)
    head = f"{'command':<28}{'median ms':>10}{'quartiles ms':>18}{'× numpy':>9}"
    print(f"{head}   ({rounds} alternated rounds)")
    for name in COMMANDS:
        times = [t[name] for t in taken]
        low, middle, high = statistics.quantiles(times, n=4)
        quartiles = f"{low * 1e3:>9.1f} –{high * 1e3:>7.1f}"
        print(f"{name:<28}{middle * 1e3:>10.1f}{quartiles}{middle / peer:>9.2f}")
    ratio = statistics.median(t["gatescope --help"] for t in taken) / peer
    print(f"gatescope --help is {ratio:.2f} × {PEER}: claimed under {CLAIM:g}")
    return 0 if ratio < CLAIM else 1


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 21))
