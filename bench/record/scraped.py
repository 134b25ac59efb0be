"""A real Prometheus scrapes a recorded CPU vLLM, which answers requests all the while: whether
each scrape is right, how long it takes, how many series there are, and whether the totals are
those of the log.

    uv run python bench/record/scraped.py --python VLLM_PYTHON [--minutes 5]

It needs `prometheus` and `promtool` (Debian's package prometheus).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.record import served
from bench.record.served import RECORD, Served, wait_until
from core.routing import folder as gate_folder

EVERY_S = 5
CONFIG = """scrape_configs:
- job_name: gatescope
  scrape_interval: {every}s
  static_configs:
  - targets: ['127.0.0.1:{port}']
"""
WORDS = ("once", "upon", "a", "time", "there", "was", "little", "girl", "who", "loved", "to")


class Prometheus:
    """A server of it, which scrapes `port`."""

    def __init__(self, place: Path, port: int) -> None:
        (place / "prometheus.yml").write_text(CONFIG.format(every=EVERY_S, port=port))
        self.port = served.free_port()
        flags = {
            "config.file": place / "prometheus.yml",
            "storage.tsdb.path": place / "data",
            "web.listen-address": f"127.0.0.1:{self.port}",
        }
        words = ["prometheus", *(f"--{name}={value}" for name, value in flags.items())]
        self.process = subprocess.Popen(words, stderr=subprocess.DEVNULL)

    def value(self, query: str) -> float:
        """The one value of a query; nan where there is none."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query"
        said = httpx.get(url, params={"query": query}, trust_env=False).json()
        found = said["data"]["result"]
        return float(found[0]["value"][1]) if found else float("nan")


def ask_until(over: threading.Event, server: Served) -> None:
    draw = random.Random(0)
    while not over.is_set():
        server.answer(" ".join(draw.choices(WORDS, k=draw.randint(5, 60))), 40)


def totals(logs: Path) -> dict[str, float]:
    """Steps and tokens of each phase, as the log has them."""
    log = gate_folder.read(logs)
    log = log.where(log.tokens > 0)
    prompt = log.columns["prefill_tokens"] > 0
    return {
        f'gatescope_{name}_total{{phase="{phase}"}}': float(values[own].sum())
        for name, values in (("steps", log.tokens > 0), ("tokens", log.tokens))
        for phase, own in (("prefill", prompt), ("decode", ~prompt))
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True)
    parser.add_argument("--minutes", type=float, default=5)
    options = parser.parse_args()
    seconds = round(60 * options.minutes)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model, port, metrics = served.checkpoint(place), served.free_port(), served.free_port()
        words = [*RECORD, "--out", str(place / "logs"), "--metrics-port", str(metrics)]
        command = [*words, "--metrics-experts", "--", *served.vllm(options.python, model, port)]
        with served.serving(command, port, place / "output") as server:
            server.wait_ready()
            scraper, over = Prometheus(place, metrics), threading.Event()
            asking = [threading.Thread(target=ask_until, args=(over, server)) for _ in range(3)]
            for one in asking:
                one.start()
            time.sleep(seconds)
            over.set()
            for one in asking:
                one.join()
            time.sleep(2.0)  # the log's writer is a moment behind
            found = looked_up(scraper, seconds, metrics, totals(place / "logs" / "gate_logs"))
            scraper.process.terminate()
            scraper.process.wait()
            server.end()
        print("| | |\n|---|---|")
        for what, value in found.items():
            print(f"| {what} | {value} |")
    return int(not all(value != "False" for value in map(str, found.values())))


def looked_up(
    prometheus: Prometheus, seconds: int, metrics: int, want: dict[str, float]
) -> dict[str, object]:
    wait_until(lambda: all(prometheus.value(q) == value for q, value in want.items()), 30)
    window = f"[{seconds}s]"
    text = httpx.get(f"http://127.0.0.1:{metrics}/metrics", trust_env=False).content
    linted = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    ask = prometheus.value
    return {
        f"scrapes, one in {EVERY_S} s": f"{ask(f'count_over_time(up{window})'):.0f}",
        "all of them up": ask(f"min_over_time(up{window})") == 1,
        "recorder without a problem": ask(f"min_over_time(gatescope_recorder_up{window})") == 1,
        "longest scrape": f"{1e3 * ask(f'max_over_time(scrape_duration_seconds{window})'):.1f} ms",
        "most samples in one": f"{ask(f'max_over_time(scrape_samples_scraped{window})'):.0f}",
        "totals are those of the log": all(ask(q) == value for q, value in want.items()),
        "steps, tokens": json.dumps([int(value) for value in want.values()]),
        "shares of a layer's experts sum to 1": abs(
            ask('sum(gatescope_expert_load_share{layer="0",phase="decode"})') - 1
        )
        < 1e-9,
        "promtool check metrics": linted.stderr.decode().strip() or "nothing to say",
    }


if __name__ == "__main__":
    raise SystemExit(main())
