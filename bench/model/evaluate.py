"""What the tiny Mixtral's router reacts to.

    python evaluate.py tiny-mixtral corpus.tar.xz DATASETS --out evaluation.json

DATASETS holds domain_queries.json (domain → prompts), metadata.json and the datasets it names; none
of them was trained on. Every figure is in float32 with the shipped float16 weights, beside the same
for random weights of the same sizes (normal, variance gain²/fan-in, router gain 1.5). A prompt is
BOS and its bytes. Load: picks of an expert, 2 a token.

CV, floor and excess CV: CV = population std / mean over experts, floor² = (E/k²) Σ p(1-p)/(n-1)
with p = load/n, excess = √max(0, mean CV² - mean floor²) over steps and layers. A step is one
prompt (`by prompt`) or all prompts of a set at once (`at once`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from torch import nn

from bench.model.train import BOS, EOS, PROSE, VOCAB, Shape, TinyMixtral, read_corpus, rms_norm

Array = np.ndarray[Any, Any]
K = 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Seen:
    """What the router did with one text."""

    tokens: Array  # [n]
    picks: Array  # [layers, n, k]
    bits: float  # of all tokens after the first

    def loads(self, experts: int) -> Array:
        """[layers, experts]"""
        return np.stack([np.bincount(p.ravel(), minlength=experts) for p in self.picks]).astype(
            float
        )


def look(
    model: TinyMixtral,
    texts: Sequence[Sequence[int]],
    batch_tokens: int = 8192 if DEVICE.type == "cuda" else 4096,
) -> list[Seen]:
    """Run every text; those of like length together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    seen: dict[int, Seen] = {}
    while order:
        longest = len(texts[order[-1]])
        rows = [order.pop() for _ in range(min(len(order), max(1, batch_tokens // longest)))]
        padded = torch.full((len(rows), longest), EOS)
        for r, i in enumerate(rows):
            padded[r, : len(texts[i])] = torch.tensor(texts[i])
        with torch.no_grad():
            padded = padded.to(DEVICE)
            logits, routings = model(padded)
            chosen = np.stack(
                [r.chosen.view(len(rows), longest, -1).cpu().numpy() for r in routings]
            )
            lost = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), padded[:, 1:].flatten(), reduction="none"
            )
            lost = lost.view(len(rows), -1).cpu().numpy() / math.log(2)
        for r, i in enumerate(rows):
            n = len(texts[i])
            seen[i] = Seen(
                np.array(texts[i]), chosen[:, r, :n].astype(np.int8), float(lost[r, : n - 1].sum())
            )
    return [seen[i] for i in range(len(texts))]


def random_model(shape: Shape, seed: int) -> TinyMixtral:
    """Untrained weights under which activations keep their size."""
    draw = torch.Generator().manual_seed(seed)
    model = TinyMixtral(shape)
    with torch.no_grad():
        for name, view in model.named_tensors().items():
            if view.dim() == 2:
                gain = (
                    1.0
                    if "embed" in name
                    else (1.5 if "gate" in name else 1.0) / view.shape[1] ** 0.5
                )
                view.copy_(torch.randn(view.shape, generator=draw) * gain)
    return model.eval().to(DEVICE)


# --- figures


def cv_squared(loads: Array) -> Array:
    """Over the last axis."""
    return (loads.std(-1) / (loads.mean(-1) + 1e-10)) ** 2


def floor_squared(loads: Array, n: float) -> Array:
    """Over the last axis, of n tokens."""
    p = loads / n
    return loads.shape[-1] / K**2 * (p * (1 - p)).sum(-1) / (n - 1)


def excess(steps: Sequence[tuple[Array, int]]) -> float:
    """steps: loads [layers, experts] and tokens."""
    value = np.mean([cv_squared(x) for x, _ in steps]) - np.mean(
        [floor_squared(x, n) for x, n in steps]
    )
    return math.sqrt(max(0.0, float(value)))


def excesses(seen: Sequence[Seen], experts: int) -> tuple[float, float]:
    """By prompt, and at once."""
    steps = [(s.loads(experts), len(s.tokens)) for s in seen]
    whole = (np.sum([x for x, _ in steps], 0), sum(n for _, n in steps))
    return excess(steps), excess([whole])


def ranks(values: Array) -> Array:
    """With ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def spearman(a: Array, b: Array) -> float:
    """Rank correlation."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def spread(values: Array) -> dict[str, float]:
    """Least, median, most."""
    return {
        "min": float(min(values)),
        "median": float(np.median(values)),
        "max": float(max(values)),
    }


# --- tables from bytes to experts


class Tables:
    """Expected picks of each expert given the last 1, 2 or 3 tokens, learned from texts; rare
    contexts back off."""

    def __init__(
        self, seen: Sequence[Seen], layers: int, experts: int, backoff: float = 4.0
    ) -> None:
        self.layers, self.experts, self.backoff = layers, experts, backoff
        tokens = [s.tokens for s in seen]
        picks = np.concatenate([s.picks for s in seen], 1).astype(np.int64)
        self.orders: list[tuple[Array, Array, Array]] = []
        for order in (1, 2, 3):
            keys, places = np.unique(
                np.concatenate([contexts(t, order) for t in tokens]), return_inverse=True
            )
            counts = np.zeros((layers, len(keys), experts))
            for layer in range(layers):
                flat = (places[:, None] * experts + picks[layer]).ravel()
                counts[layer] = np.bincount(flat, minlength=len(keys) * experts).reshape(
                    -1, experts
                )
            self.orders.append((keys, counts, np.bincount(places, minlength=len(keys))))
        self.overall = self.orders[0][1].sum(1) / len(picks[0])

    def expect(self, tokens: Array, order: int) -> Array:
        """[layers, n, experts], summing to k over the experts."""
        value = np.broadcast_to(self.overall[:, None], (self.layers, len(tokens), self.experts))
        for i in range(order):
            keys, counts, totals = self.orders[i]
            wanted = contexts(tokens, i + 1)
            at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            known = keys[at] == wanted
            total = np.where(known, totals[at], 0)[None, :, None]
            value = (np.where(known[None, :, None], counts[:, at], 0) + self.backoff * value) / (
                total + self.backoff
            )
        return value


def contexts(tokens: Array, order: int) -> Array:
    """One number for the last `order` tokens at every place."""
    key = tokens.astype(np.int64)
    for back in range(1, order):
        before = (
            np.concatenate([np.full(back, EOS), tokens[:-back]])
            if len(tokens) > back
            else np.full(len(tokens), EOS)
        )
        key = key + before.astype(np.int64) * (VOCAB + 1) ** back
    return key


# --- mutual information


def entropy(counts: Array, axis: int = -1) -> Array:
    """Bits, of counts along an axis."""
    total = counts.sum(axis, keepdims=True)
    p = np.divide(counts, total, out=np.zeros_like(counts, float), where=total > 0)
    return -(p * np.log2(p, out=np.zeros_like(p), where=p > 0)).sum(axis)


def information(
    byte: Array, label: Array, picks: Array, experts: int, labels: int
) -> tuple[float, float, float, float]:
    """H(expert), I(expert; byte), I(expert; label), I(expert; label | byte), in bits a pick;
    plug-in."""
    flat = ((byte[:, None] * labels + label[:, None]) * experts + picks).ravel()
    joint = (
        np.bincount(flat, minlength=(VOCAB + 1) * labels * experts)
        .reshape(-1, labels, experts)
        .astype(float)
    )
    whole = joint.sum()

    def conditional(counts: Array) -> float:
        return float((entropy(counts) * counts.sum(-1)).sum() / whole)

    h = float(entropy(joint.sum((0, 1))))
    given_byte = conditional(joint.sum(1))
    return h, h - given_byte, h - conditional(joint.sum(0)), given_byte - conditional(joint)


def information_table(
    seen: Sequence[Seen], labels: Sequence[int], experts: int, rng: np.random.Generator
) -> list[dict[str, float]]:
    """By layer; what labels dealt out anew among the texts show is taken off as bias."""
    lengths = np.array([len(s.tokens) for s in seen])
    byte = np.concatenate([s.tokens for s in seen])
    count = max(labels) + 1
    rows = []
    for layer in range(len(seen[0].picks)):
        picks = np.concatenate([s.picks[layer] for s in seen]).astype(np.int64)
        h, by_byte, by_label, given = information(
            byte, np.repeat(labels, lengths), picks, experts, count
        )
        null = [
            information(byte, np.repeat(rng.permutation(labels), lengths), picks, experts, count)[
                2:
            ]
            for _ in range(10)
        ]
        before = np.concatenate(
            [contexts(s.tokens, 2) % (VOCAB + 1) ** 2 // (VOCAB + 1) for s in seen]
        )
        previous = information(byte, np.minimum(before, EOS), picks, experts, VOCAB)[3]
        null_previous = information(
            byte, rng.permutation(np.minimum(before, EOS)), picks, experts, VOCAB
        )[3]
        bias_label, bias_given = np.mean(null, 0)
        rows.append(
            {
                "H": h,
                "I(expert;byte)": by_byte,
                "I(expert;domain)": by_label - bias_label,
                "I(expert;domain|byte)": given - bias_given,
                "sd of null": float(np.std([x[1] for x in null])),
                "I(expert;previous byte|byte)": previous - null_previous,
            }
        )
    return rows


# --- is it content?


def split_halves(
    seen: Sequence[Seen],
    labels_of: Sequence[int],
    expected: Sequence[Array] | None,
    experts: int,
    rng: np.random.Generator,
    repeats: int = 20,
) -> dict[str, object]:
    """Do the loads of one half of a domain's texts tell the other half's?

    Shares of load by layer and expert, less the mean over domains (`expected` [layers, experts] of
    each text, where given, is taken off first). r: correlation of the halves over domains ×
    experts, by layer. found: domains whose other half is the nearest of all.
    """
    labels = np.asarray(labels_of)
    loads = np.stack([s.loads(experts) for s in seen])
    if expected is not None:
        loads = loads - np.stack(expected)
    n = np.array([len(s.tokens) for s in seen], float)
    count = labels.max() + 1
    r, found = [], []
    for _ in range(repeats):
        halves = np.zeros((2, count, *loads.shape[1:]))
        for d in range(count):
            own = rng.permutation(np.flatnonzero(labels == d))
            for side, part in enumerate((own[: len(own) // 2], own[len(own) // 2 :])):
                halves[side, d] = loads[part].sum(0) / n[part].sum()
        halves -= halves.mean(1, keepdims=True)
        r.append(
            [
                np.corrcoef(halves[0, :, layer].ravel(), halves[1, :, layer].ravel())[0, 1]
                for layer in range(loads.shape[1])
            ]
        )
        a, b = halves[0].reshape(count, -1), halves[1].reshape(count, -1)
        distance = ((a[:, None] - b[None]) ** 2).sum(-1)
        found.append((distance.argmin(1) == np.arange(count)).mean())
    return {
        "r": np.mean(r, 0).round(3).tolist(),
        "found": round(float(np.mean(found)), 3),
        "chance": round(1 / count, 3),
    }


# --- can bytes alone tell it?


def predictions(
    tables: Tables, sets: Sequence[Sequence[Seen]], actual: Array, rest: Array
) -> dict[str, dict[str, object]]:
    """What the tables foretell of datasets; `actual` [sets, 2] excess CV by prompt and at once,
    `rest` picks the sets that repeat no text."""
    layers, experts = tables.layers, tables.experts
    whole = [
        (np.sum([s.loads(experts) for s in d], 0), sum(len(s.tokens) for s in d)) for d in sets
    ]
    by_layer = np.array(
        [np.sqrt(np.maximum(0, cv_squared(x) - floor_squared(x, n))) for x, n in whole]
    )
    truth = np.stack([x / x.sum(-1, keepdims=True) for x, _ in whole])
    real = np.concatenate([s.picks for d in sets for s in d], 1)
    result = {}
    for order in (1, 2, 3):
        guess = [[tables.expect(s.tokens, order) for s in d] for d in sets]
        top = np.concatenate([np.argsort(-g, -1)[:, :, :K] for d in guess for g in d], 1)
        sums = np.stack([sum(g.sum(1) for g in d) for d in guess])
        share = sums / sums.sum(-1, keepdims=True)
        foretold = np.sqrt(cv_squared(sums))
        by_prompt = np.array([math.sqrt(np.mean([cv_squared(g.sum(1)) for g in d])) for d in guess])
        at_once = np.sqrt((foretold**2).mean(1))
        result[f"{order} bytes"] = {
            "picks in common by layer": [
                round(overlap(top[layer], real[layer]), 3) for layer in range(layers)
            ],
            "r of datasets' shares less their mean, by layer, without high_repetition": [
                round(
                    float(
                        np.corrcoef(
                            (share[rest, layer] - share[rest, layer].mean(0)).ravel(),
                            (truth[rest, layer] - truth[rest, layer].mean(0)).ravel(),
                        )[0, 1]
                    ),
                    3,
                )
                for layer in range(layers)
            ],
            "spearman, by prompt": {
                "all": spearman(by_prompt, actual[:, 0]),
                "without high_repetition": spearman(by_prompt[rest], actual[rest, 0]),
            },
            "spearman, at once": {
                "all": spearman(at_once, actual[:, 1]),
                "without high_repetition": spearman(at_once[rest], actual[rest, 1]),
            },
            "spearman, at once, by layer, without high_repetition": [
                round(spearman(foretold[rest, layer], by_layer[rest, layer]), 3)
                for layer in range(layers)
            ],
            "median excess CV at once, by layer, foretold": np.median(foretold[rest], 0)
            .round(3)
            .tolist(),
            "median excess CV at once, by layer, real": np.median(by_layer[rest], 0)
            .round(3)
            .tolist(),
            "median predicted / actual, at once": float(np.median(at_once / actual[:, 1])),
            "median predicted / actual, by prompt": float(np.median(by_prompt / actual[:, 0])),
        }
    return result


# --- decoding


def decode(
    model: TinyMixtral, prompt: Sequence[int], length: int, temperatures: Sequence[float], seed: int
) -> tuple[list[list[int]], Array]:
    """Tokens at each temperature (0: greedy) and their picks [temperatures, layers, length, k]; EOS
    does not end it."""
    draw = torch.Generator().manual_seed(seed)
    caches: list[list[torch.Tensor]] = [[] for _ in range(model.shape.layers)]
    out: list[list[int]] = [[] for _ in temperatures]
    picks = []
    with torch.no_grad():
        logits, _ = model(
            torch.tensor([list(prompt)] * len(temperatures), device=DEVICE), 0, caches
        )
        for i in range(length):
            last = logits[:, -1].cpu()
            tokens = [
                int(x.argmax())
                if t == 0
                else int(torch.multinomial((x / t).softmax(0), 1, generator=draw))
                for x, t in zip(last, temperatures, strict=True)
            ]
            for row, token in zip(out, tokens, strict=True):
                row.append(token)
            logits, routings = model(
                torch.tensor(tokens, device=DEVICE)[:, None], len(prompt) + i, caches
            )
            picks.append(torch.stack([r.chosen for r in routings]))
    return out, torch.stack(picks).cpu().numpy().transpose(2, 1, 0, 3)


def period(tokens: Sequence[int], tail: int = 150) -> int | None:
    """The shortest period of at most half of the last tokens, if they repeat."""
    end = list(tokens)[-tail:]
    return next(
        (
            p
            for p in range(1, len(end) // 2 + 1)
            if all(a == b for a, b in zip(end, end[p:], strict=False))
        ),
        None,
    )


def decode_all(
    model: TinyMixtral, prompts: Sequence[Sequence[int]], length: int
) -> list[dict[str, object]]:
    """Greedy, and at temperature 1."""
    both = [decode(model, p, length, (0.0, 1.0), 100 + i) for i, p in enumerate(prompts)]
    experts = model.shape.experts
    return [
        decode_figures([(texts[i], picks[i]) for texts, picks in both], experts, t)
        for i, t in enumerate((0.0, 1.0))
    ]


def decode_figures(
    runs: Sequence[tuple[list[int], Array]], experts: int, temperature: float
) -> dict[str, object]:
    """Over prompts decoded side by side: tokens and picks [layers, length, k] of each."""
    picks = np.stack([p for _, p in runs])  # [prompts, layers, length, k]
    layers, length = range(picks.shape[1]), picks.shape[2]

    def load(x: Array) -> tuple[int, ...]:
        return tuple(np.bincount(x.ravel(), minlength=experts).tolist())

    periods = [period(t) for t, _ in runs]
    half = length // 2
    late = np.stack(
        [
            [np.bincount(picks[r, layer, half:].ravel(), minlength=experts) for layer in layers]
            for r in range(len(runs))
        ]
    )
    steps = [
        (
            np.stack(
                [np.bincount(picks[:, layer, t].ravel(), minlength=experts) for layer in layers]
            ).astype(float),
            len(runs),
        )
        for t in range(length)
    ]
    return {
        "prompts": len(runs),
        "tokens": length,
        "temperature": temperature,
        "loops": sum(p is not None for p in periods),
        "periods": sorted(p for p in periods if p is not None),
        "distinct texts": len({tuple(t) for t, _ in runs}),
        "distinct second halves": len({tuple(t[half:]) for t, _ in runs}),
        "distinct loads of a request by layer": [
            len({load(picks[r, layer]) for r in range(len(runs))}) for layer in layers
        ],
        "distinct loads of a request's second half by layer": [
            len({tuple(late[r, layer]) for r in range(len(runs))}) for layer in layers
        ],
        "distinct loads of a step by layer": [
            len({load(picks[:, layer, t]) for t in range(length)}) for layer in layers
        ],
        "excess CV of steps of all prompts": round(excess(steps), 4),
        "excess CV of a request's tokens": round(
            excess(
                [
                    (
                        np.stack(
                            [
                                np.bincount(picks[r, layer].ravel(), minlength=experts)
                                for layer in layers
                            ]
                        ).astype(float),
                        length,
                    )
                    for r in range(len(runs))
                ]
            ),
            4,
        ),
        "samples": [
            bytes(t for t in runs[i][0] if t < 256).decode("utf-8", "replace")[:160]
            for i in range(0, len(runs), 10)
        ],
    }


# --- all of it


def windows_of(
    corpus: Path, part: str, windows: int, rng: np.random.Generator, context: int = 511
) -> tuple[list[list[int]], list[int], list[str]]:
    """Random pieces of documents, each after BOS, with their domain's number; and the domains'
    names."""
    texts: list[list[int]] = []
    labels: list[int] = []
    names: list[str] = []
    for name, stream in sorted(read_corpus(corpus, part).items()):
        pieces = []
        for document in np.split(stream, np.flatnonzero(stream == BOS)[1:]):
            whole = document[document < 256].tolist()
            pieces += [
                whole[i : i + context]
                for i in range(0, len(whole), context)
                if len(whole) - i >= 64
            ]
        chosen = [pieces[i] for i in rng.permutation(len(pieces))[:windows]]
        texts += [[BOS, *t] for t in chosen]
        labels += [len(names)] * len(chosen)
        names.append(name)
    return texts, labels, names


def attentionless(model: TinyMixtral, tokens: Array) -> Array:
    """Layer 0's picks [n, k] from embedding, norm and router alone."""
    layer = model.layers[0]
    with torch.no_grad():
        x = model.embedding[torch.from_numpy(tokens.astype(np.int64)).to(DEVICE)]
        return (
            layer.route(rms_norm(x, layer.expert_norm, model.shape.norm_eps))[0]
            .chosen.cpu()
            .numpy()
        )


def overlap(a: Array, b: Array) -> float:
    """Mean share of picks in common, [n, k] each."""
    return float((a[:, :, None] == b[:, None, :]).any(-1).mean())


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", type=Path)
    add("corpus", type=Path)
    add("datasets", type=Path)
    add("--out", type=Path, required=True)
    add("--windows", type=int, default=100, help="of 511 bytes, a held-out domain")
    add("--decode", type=int, default=256, help="tokens decoded after each of 30 prompts")
    add("--no-random", action="store_true", help="leave the random weights out")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    model = TinyMixtral.load(options.model).to(DEVICE)
    shape = model.shape
    experts, layers = shape.experts, shape.layers
    models = {"trained": model} | ({} if options.no_random else {"random": random_model(shape, 1)})
    queries = json.loads((options.datasets / "domain_queries.json").read_text())
    names = list(queries)
    query_texts = [[BOS, *q.encode()] for d in names for q in queries[d]]
    query_labels = [i for i, d in enumerate(names) for _ in queries[d]]
    meta = json.loads((options.datasets / "metadata.json").read_text())
    sets = [
        [
            [BOS, *json.loads(line)["text"].encode()]
            for line in (options.datasets / m["file"]).read_text().splitlines()
        ]
        for m in meta
    ]
    held, held_labels, held_names = windows_of(options.corpus, "held", options.windows, rng)
    other, other_labels, _ = windows_of(options.corpus, "train", options.windows, rng)
    results: dict[str, object] = {
        "domains": held_names,
        "query domains": names,
        "strategies": [m["strategy"] for m in meta],
    }
    repetition = np.array([m["strategy"] == "high_repetition" for m in meta])
    scored = np.array([m["score"] for m in meta])

    for kind, of in models.items():
        print(kind, flush=True)
        seen = look(of, held)
        if kind == "trained":
            bits = {
                n: (
                    sum(s.bits for s, label in zip(seen, held_labels, strict=True) if label == i),
                    sum(
                        len(s.tokens) - 1
                        for s, label in zip(seen, held_labels, strict=True)
                        if label == i
                    ),
                )
                for i, n in enumerate(held_names)
            }
            results["bits per byte"] = {n: round(b / c, 3) for n, (b, c) in bits.items()}
            results["bits per byte, all"] = round(
                sum(b for b, _ in bits.values()) / sum(c for _, c in bits.values()), 3
            )
        r: dict[str, object] = {}
        loads = np.stack(
            [
                sum(
                    s.loads(experts)
                    for s, label in zip(seen, held_labels, strict=True)
                    if label == i
                )
                for i in range(len(held_names))
            ]
        )
        shares = loads / loads.sum(-1, keepdims=True)
        r["load shares by domain"] = shares.round(3).tolist()
        r["CV by domain and layer"] = np.sqrt(cv_squared(loads)).round(3).tolist()
        r["CV of all domains by layer"] = np.sqrt(cv_squared(shares.mean(0))).round(3).tolist()
        r["information, held-out"] = information_table(seen, held_labels, experts, rng)
        r["halves, held-out"] = split_halves(seen, held_labels, None, experts, rng)

        asked = look(of, query_texts)
        if kind == "trained":
            results["bits per byte, queries"] = round(
                sum(s.bits for s in asked) / sum(len(s.tokens) - 1 for s in asked), 3
            )
        read = look(of, other)
        tables = Tables(read, layers, experts)
        prose = Tables(
            [x for x, label in zip(read, other_labels, strict=True) if held_names[label] in PROSE],
            layers,
            experts,
        )
        r["information, queries"] = information_table(asked, query_labels, experts, rng)
        r["halves, queries"] = split_halves(asked, query_labels, None, experts, rng)
        for order in (1, 3):
            expected = [tables.expect(s.tokens, order).sum(1) for s in asked]
            r[f"halves, queries, beyond {order} bytes"] = split_halves(
                asked, query_labels, expected, experts, rng
            )
        for order in (1, 3):
            expected = [tables.expect(s.tokens, order).sum(1) for s in seen]
            r[f"halves, held-out, beyond {order} bytes"] = split_halves(
                seen, held_labels, expected, experts, rng
            )
        by_domain = [
            excesses(
                [s for s, label in zip(asked, query_labels, strict=True) if label == i], experts
            )
            for i in range(len(names))
        ]
        r["excess CV, query domains, by prompt"] = {
            n: round(a, 4) for n, (a, _) in zip(names, by_domain, strict=True)
        }
        r["excess CV, query domains, at once"] = {
            n: round(b, 4) for n, (_, b) in zip(names, by_domain, strict=True)
        }

        done = [look(of, s) for s in sets]
        actual = np.array([excesses(s, experts) for s in done])
        r["excess CV, datasets, by prompt"] = actual[:, 0].round(4).tolist()
        r["excess CV, datasets, at once"] = actual[:, 1].round(4).tolist()
        r["excess CV, datasets, spread"] = {
            w: {
                "all": spread(actual[:, i]),
                "without high_repetition": spread(actual[~repetition, i]),
            }
            for i, w in enumerate(("by prompt", "at once"))
        }
        r["spearman of excess CV with the datasets' score"] = {
            w: {
                "all": spearman(actual[:, i], scored),
                "without high_repetition": spearman(actual[~repetition, i], scored[~repetition]),
            }
            for i, w in enumerate(("by prompt", "at once"))
        }
        half = np.array(
            [[excesses(d[side::2], experts) for side in (0, 1)] for d in done]
        )  # [sets, halves, ways]
        r["spearman of excess CV of the halves of a dataset"] = {
            w: {
                "all": spearman(half[:, 0, i], half[:, 1, i]),
                "without high_repetition": spearman(
                    half[~repetition, 0, i], half[~repetition, 1, i]
                ),
            }
            for i, w in enumerate(("by prompt", "at once"))
        }
        every = [s for d in done for s in d]
        r["layer 0 without attention"] = {
            "picks in common": overlap(
                np.concatenate([attentionless(of, s.tokens) for s in every]),
                np.concatenate([s.picks[0] for s in every]),
            )
        }
        r["predicted from bytes"] = predictions(tables, done, actual, ~repetition)
        r["predicted from bytes of prose"] = predictions(prose, done, actual, ~repetition)
        thirty = [query_texts[i] for i in range(0, len(query_texts), len(query_texts) // 30)][:30]
        r["decoding"] = decode_all(of, thirty, options.decode)
        results[kind] = r
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
