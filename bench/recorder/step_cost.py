"""What one step of the recorder costs the GPU, without vLLM.

    python bench/recorder/step_cost.py

It needs PyTorch and a GPU, and takes half a minute. Three CUDA graphs take turns, each replayed 200
times in blocks of 20: `off` (one copy per layer in place of the router), `control` (the same
again), and `on` (with one tap per layer, followed by the histogram and the copy to the host).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "core" / "recorder"))

from gatescope_recorder.capture import Capture

# Tokens, layers, experts, top-k.
SHAPES = ((1, 32, 8, 2), (32, 32, 8, 2), (2048, 32, 8, 2), (32, 58, 256, 8))
BLOCKS, STEPS = 10, 20


def main() -> int:
    """Print µs a step for every shape; return how many had wrong counts, or 1 without a GPU."""
    if not torch.cuda.is_available():
        print("no GPU", file=sys.stderr)
        return 1
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print(f"{'tokens, layers, experts, k':<28}{'off µs':>9}{'control':>9}{'on':>9}{'cost µs':>9}")
    return sum(_shape(*shape) for shape in SHAPES)


def _shape(tokens: int, layers: int, experts: int, top_k: int) -> int:
    device = torch.device("cuda")
    capture = Capture(layers, 8192, top_k, experts, device)
    capture.warming_up = False
    count = capture.histogram
    weights = torch.rand(layers, tokens, experts, device=device)
    chosen = weights.topk(top_k).indices.to(torch.int32)
    scratch = torch.empty_like(chosen)
    host = torch.zeros(layers, experts + 1, dtype=torch.int32, pin_memory=True)
    taps = [capture.tap(layer) for layer in range(layers)]

    def route(tapped: bool) -> None:
        for layer in range(layers):
            scratch[layer].copy_(chosen[layer])
            if tapped:
                taps[layer](chosen[layer])

    off, control, on = (_graph(partial(route, tapped)) for tapped in (False, False, True))

    def recorded() -> None:
        on.replay()
        count(host, tokens)

    times = _alternated({"off": off.replay, "control": control.replay, "on": recorded})
    torch.cuda.synchronize()
    counts = [torch.bincount(c.flatten(), minlength=experts + 1) for c in chosen.long()]
    is_exact = torch.equal(host.long(), torch.stack(counts).cpu())
    cost = times["on"] - times["off"]
    name = f"{tokens}, {layers}, {experts}, {top_k}"
    micros = "".join(f"{times[graph]:>9.1f}" for graph in ("off", "control", "on"))
    print(f"{name:<28}{micros}{cost:>9.1f}{'' if is_exact else '   WRONG COUNTS'}")
    return 0 if is_exact else 1


def _graph(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def _alternated(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median µs a step, over blocks that take turns."""
    blocks: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(BLOCKS):
        for name, step in steps.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            step()
            begin.record()
            for _ in range(STEPS):
                step()
            end.record()
            torch.cuda.synchronize()
            blocks[name].append(begin.elapsed_time(end) * 1e3 / STEPS)
    return {name: statistics.median(values) for name, values in blocks.items()}


if __name__ == "__main__":
    raise SystemExit(main())
