"""What a replayed step costs the engine's thread before it is launched: choosing experts for its
tokens, of a step that is kept and of one that is realised anew; CPU time, medians.

    python bench/dose/replay_cost.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.recorder.gatescope_recorder.order import Order
from core.recorder.gatescope_recorder.replay import STEPS_KEPT, Player, Track
from core.routing.recording import Recording

LAYERS, EXPERTS, TOP_K = 32, 8, 2
SIZES = (8, 30, 64, 256, 8192)


def loads(tokens: int, steps: int) -> np.ndarray:
    """[steps, layers, experts] of a fair router."""
    draw = np.random.default_rng(0)
    keys = draw.random((steps, LAYERS, tokens, EXPERTS)).argsort(axis=-1)[..., :TOP_K]
    return np.asarray((keys[..., None] == np.arange(EXPERTS)).sum(axis=(2, 3)))


def median_us(tokens: int, steps: int, folder: Path) -> float:
    Recording(folder, LAYERS, EXPERTS, TOP_K, {"001": {"decode": loads(tokens, steps)}}).write(
        folder
    )
    order = Order((), replays=("replay~001",), recording=str(folder))
    player, took = Player(Track(order, "001", TOP_K, LAYERS)), []
    for _ in range(2 * steps):
        began = time.process_time_ns()
        player.next("decode", tokens, 0)
        took.append((time.process_time_ns() - began) / 1e3)
    return float(np.median(took[steps:]))


def main() -> None:
    print("tokens   kept µs   realised anew µs")
    for tokens in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            kept = median_us(tokens, 4, Path(folder))
            anew = median_us(tokens, STEPS_KEPT + 2, Path(folder))
        print(f"{tokens:6}   {kept:7.0f}   {anew:16.0f}")


if __name__ == "__main__":
    main()
