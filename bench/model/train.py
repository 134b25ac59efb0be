"""Train a byte-level language model of Mixtral's architecture and write it under Hugging Face's
names.

    python train.py corpus.tar.xz OUT --seconds 430      on one GPU; a few minutes
    python train.py corpus.tar.xz OUT --steps 20 --batch 4 --context 128 --no-compile
                                                         a try on a CPU

As in Mixtral: RMSNorm, grouped-query attention with RoPE (rotate-half), a router that renormalises
the softmax of its top 2 of 8, SwiGLU experts, a load-balancing loss. Tokens: 256 bytes, BOS, EOS.
The balance loss is taken per layer over the whole batch, which mixes all domains: it keeps every
expert in use and leaves each domain its own skew. Training computes every expert for every token
and weighs the unchosen ones by 0: the same gradients, and fast at this size.
"""

from __future__ import annotations

import argparse
import json
import math
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BOS, EOS, VOCAB = 256, 257, 258
PROSE = ("literature", "scripture", "dictionary", "countries", "lexicon")


@dataclass(frozen=True)
class Shape:
    """The model's sizes."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 288
    experts: int = 8
    top_k: int = 2
    rope_theta: float = 1e6
    norm_eps: float = 1e-5

    def config(self) -> dict[str, object]:
        """Hugging Face's config.json."""
        return {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "vocab_size": VOCAB,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": 4096,
            "sliding_window": None,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.005,
            "router_jitter_noise": 0.0,
            "use_cache": True,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "torch_dtype": "float16",
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Shape:
        """The reverse of `config`."""
        keys = (
            "num_hidden_layers",
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "intermediate_size",
            "num_local_experts",
            "num_experts_per_tok",
            "rope_theta",
            "rms_norm_eps",
        )
        return cls(*(config[k] for k in keys))


@dataclass
class Routing:
    """What one layer's router said: logits [tokens, experts], chosen [tokens, top_k]."""

    logits: Tensor
    chosen: Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float32, back to x's type."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def rope(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head_dim]."""
    angles = positions.float()[:, None] * theta ** (
        -torch.arange(0, head_dim, 2, device=positions.device) / head_dim
    )
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half RoPE of [batch, heads, length, head_dim]."""
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.attention_norm = nn.Parameter(torch.ones(s.hidden))
        self.qkv = nn.Parameter(torch.empty((s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden))
        self.out = nn.Parameter(torch.empty(s.hidden, s.heads * s.head_dim))
        self.expert_norm = nn.Parameter(torch.ones(s.hidden))
        self.router = nn.Parameter(torch.empty(s.experts, s.hidden))
        self.gate_up = nn.Parameter(torch.empty(2, s.experts, s.intermediate, s.hidden))
        self.down = nn.Parameter(torch.empty(s.hidden, s.experts, s.intermediate))

    def attend(self, h: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor] | None) -> Tensor:
        """h [batch, length, hidden]; `cache` holds earlier keys and values and takes these."""
        s = self.s
        b, n, _ = h.shape
        qkv = F.linear(h, self.qkv).view(b, n, -1, s.head_dim).transpose(1, 2)
        q = turn(qkv[:, : s.heads], cos, sin)
        k = turn(qkv[:, s.heads : s.heads + s.kv_heads], cos, sin)
        v = qkv[:, s.heads + s.kv_heads :]
        causal = n > 1
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        group = s.heads // s.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return F.linear(mixed.transpose(1, 2).reshape(b, n, -1), self.out)

    def route(self, h: Tensor) -> tuple[Routing, Tensor]:
        """h [tokens, hidden] → what the router says and each expert's weight [tokens, experts]."""
        with torch.autocast(h.device.type, enabled=False):
            logits = F.linear(h.float(), self.router.float())
            picked, chosen = logits.topk(self.s.top_k, -1)
            mix = torch.zeros_like(logits).scatter(-1, chosen, picked.softmax(-1))
        return Routing(logits, chosen), mix

    def sparse(self, h: Tensor, chosen: Tensor, mix: Tensor) -> Tensor:
        """The chosen experts alone: what `forward` computes, in less time on a CPU."""
        out = torch.zeros_like(h)
        for e in range(self.s.experts):
            rows = (chosen == e).any(-1).nonzero()[:, 0]
            if len(rows):
                picked = h[rows]
                act = F.silu(F.linear(picked, self.gate_up[0, e])) * F.linear(
                    picked, self.gate_up[1, e]
                )
                out.index_add_(0, rows, F.linear(act, self.down[:, e]) * mix[rows, e, None])
        return out

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor] | None = None
    ) -> tuple[Tensor, Routing]:
        """x [batch, length, hidden]."""
        s = self.s
        x = x + self.attend(rms_norm(x, self.attention_norm, s.norm_eps), cos, sin, cache)
        h = rms_norm(x, self.expert_norm, s.norm_eps).view(-1, s.hidden)
        routing, mix = self.route(h)
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            return x + self.sparse(h, routing.chosen, mix).view(x.shape), routing
        both = F.linear(h, self.gate_up.view(-1, s.hidden)).view(-1, 2, s.experts, s.intermediate)
        act = F.silu(both[:, 0]) * both[:, 1] * mix.to(both.dtype)[:, :, None]
        return x + F.linear(act.flatten(1), self.down.flatten(1)).view(x.shape), routing


class TinyMixtral(nn.Module):
    """The model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.empty(VOCAB, shape.hidden))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        self.head = nn.Parameter(torch.empty(VOCAB, shape.hidden))

    def start(self) -> None:
        """Random weights to train from."""
        for name, p in self.named_parameters():
            if p.dim() > 1:
                residual = name.endswith((".out", ".down"))
                nn.init.normal_(p, std=0.04 / (2 * self.shape.layers) ** 0.5 if residual else 0.04)

    def forward(
        self, tokens: Tensor, start: int = 0, caches: list[list[Tensor]] | None = None
    ) -> tuple[Tensor, list[Routing]]:
        """tokens [batch, length] → logits [batch, length, vocab] and each layer's routing."""
        s = self.shape
        cos, sin = rope(
            torch.arange(start, start + tokens.shape[1], device=tokens.device),
            s.head_dim,
            s.rope_theta,
        )
        x, routings = F.embedding(tokens, self.embedding), []
        for i, layer in enumerate(self.layers):
            x, routing = layer(x, cos, sin, None if caches is None else caches[i])
            routings.append(routing)
        return F.linear(rms_norm(x, self.norm, s.norm_eps), self.head), routings

    def named_tensors(self) -> dict[str, Tensor]:
        """Hugging Face's names, [out, in]."""
        s = self.shape
        tensors = {
            "model.embed_tokens.weight": self.embedding,
            "model.norm.weight": self.norm,
            "lm_head.weight": self.head,
        }
        for i, layer in enumerate(self.layers):
            at = f"model.layers.{i}"
            q, k, v = layer.qkv.split(
                [s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim]
            )
            tensors |= {
                f"{at}.input_layernorm.weight": layer.attention_norm,
                f"{at}.post_attention_layernorm.weight": layer.expert_norm,
                f"{at}.self_attn.q_proj.weight": q,
                f"{at}.self_attn.k_proj.weight": k,
                f"{at}.self_attn.v_proj.weight": v,
                f"{at}.self_attn.o_proj.weight": layer.out,
                f"{at}.block_sparse_moe.gate.weight": layer.router,
            }
            for e in range(s.experts):
                at_expert = f"{at}.block_sparse_moe.experts.{e}"
                tensors[f"{at_expert}.w1.weight"] = layer.gate_up[0, e]
                tensors[f"{at_expert}.w3.weight"] = layer.gate_up[1, e]
                tensors[f"{at_expert}.w2.weight"] = layer.down[:, e]
        return tensors

    def save(self, folder: Path) -> None:
        """model.safetensors in float16, and config.json."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        halves = {
            n: t.detach().to("cpu", torch.float16).contiguous()
            for n, t in self.named_tensors().items()
        }
        save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.shape.config(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TinyMixtral:
        """What `save` wrote, in float32."""
        from safetensors.torch import load_file

        model = cls(Shape.from_config(json.loads((folder / "config.json").read_text())))
        saved = load_file(folder / "model.safetensors")
        with torch.no_grad():
            for name, view in model.named_tensors().items():
                view.copy_(
                    saved[name].float()
                )  # q, k, v and the experts are views of the parameters
        return model.eval()


def balance_loss(routing: Routing, experts: int) -> Tensor:
    """Mixtral's: experts × Σ share of picks × mean probability; top_k where even."""
    share = F.one_hot(routing.chosen, experts).float().sum(1).mean(0)
    return experts * (share * routing.logits.softmax(-1).mean(0)).sum()


# --- data


def read_corpus(path: Path, part: str) -> dict[str, np.ndarray]:
    """Domain → tokens; every document begins with BOS and ends with EOS."""
    streams = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if not member.name.endswith(f".{part}"):
                continue
            file = archive.extractfile(member)
            assert file
            raw = np.frombuffer(file.read(), np.uint8).astype(np.int16)
            ends = np.flatnonzero(raw == 0)
            raw[ends] = EOS
            streams[member.name.split(".")[0]] = np.insert(
                raw, np.concatenate([[0], ends[:-1] + 1]), BOS
            )
    return streams


class Windows:
    """Random windows: a domain by its weight, then a line's start or, two times in five, any
    place."""

    def __init__(
        self, streams: dict[str, np.ndarray], context: int, prose: float, device: torch.device
    ) -> None:
        self.context, self.device = context, device
        self.tokens = torch.from_numpy(np.concatenate(list(streams.values()))).to(device)
        sizes = np.array([len(t) for t in streams.values()])
        self.first = torch.from_numpy(np.cumsum(sizes) - sizes).to(device)
        self.room = torch.from_numpy(sizes - context - 1).to(device)
        weight = np.sqrt(sizes) * [prose if name in PROSE else 1 for name in streams]
        self.weights = torch.from_numpy(weight / weight.sum()).to(device)
        starts = [np.flatnonzero((t[:-1] == 10) | (t[:-1] == EOS)) for t in streams.values()]
        starts = [
            s[s < len(t) - context - 1] for s, t in zip(starts, streams.values(), strict=True)
        ]
        counts = np.array([len(s) for s in starts])
        self.starts = torch.from_numpy(np.concatenate(starts)).to(device)
        self.starts_first = torch.from_numpy(np.cumsum(counts) - counts).to(device)
        self.starts_count = torch.from_numpy(counts).to(device)

    def draw(self, batch: int) -> Tensor:
        """[batch, context + 1]; the first token is BOS, as in every prompt."""
        domain = torch.multinomial(self.weights, batch, replacement=True)
        u, v, w = torch.rand(3, batch, device=self.device, dtype=torch.float64)
        anywhere = (u * self.room[domain]).long()
        at_line = self.starts[self.starts_first[domain] + (v * self.starts_count[domain]).long()]
        at = self.first[domain] + torch.where(w < 0.4, anywhere, at_line)
        window = self.tokens[
            at[:, None] + torch.arange(self.context + 1, device=self.device)
        ].long()
        window[:, 0] = BOS
        return window


# --- training


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("corpus", type=Path)
    add("out", type=Path)
    add(
        "--seconds",
        type=float,
        default=430,
        help="time for training; the number of steps follows from the speed",
    )
    add("--steps", type=int, default=0, help="instead of --seconds")
    add("--batch", type=int, default=256)
    add("--context", type=int, default=512)
    add("--rate", type=float, default=3e-3)
    add("--balance", type=float, default=0.005, help="coefficient of the load-balancing loss")
    add(
        "--prose",
        type=float,
        default=2,
        help="how much oftener prose is drawn; else the root of a domain's size",
    )
    add("--intermediate", type=int, default=Shape.intermediate)
    add("--seed", type=int, default=1)
    add("--no-compile", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    shape = Shape(intermediate=options.intermediate)
    model = TinyMixtral(shape).to(device)
    model.start()
    windows = Windows(read_corpus(options.corpus, "train"), options.context, options.prose, device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {len(windows.tokens)} tokens of text", flush=True)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(
        groups, lr=options.rate, betas=(0.9, 0.95), fused=device.type == "cuda"
    )

    def losses(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            logits, routings = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        balance = torch.stack([balance_loss(r, shape.experts) for r in routings]).mean()
        loads = torch.stack([F.one_hot(r.chosen, shape.experts).sum((0, 1)) for r in routings])
        return loss, balance, loads

    step_losses = losses if options.no_compile else torch.compile(losses)
    warmup, probe = 200, 60
    total = options.steps or 10**9
    began = time.monotonic()
    timed_from = 0.0
    step, log = 0, []
    while step < total:
        if options.steps == 0 and step == probe:  # the first steps compile
            torch.cuda.synchronize()
            timed_from = time.monotonic()
        if options.steps == 0 and step == 3 * probe:
            torch.cuda.synchronize()
            pace = (time.monotonic() - timed_from) / (2 * probe)
            total = step + int((options.seconds - (time.monotonic() - began)) / pace)
            seen = total * options.batch * options.context / 1e6
            print(f"{pace * 1e3:.1f} ms a step: {total} steps, {seen:.0f} M bytes", flush=True)
        ramp = min(1.0, (step + 1) / warmup)
        rate = (
            options.rate
            * ramp
            * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss, balance, loads = step_losses(windows.draw(options.batch))
        (loss + options.balance * balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        if step % 200 == 0 or step in (1, 20, total):
            share = (loads / loads.sum(1, keepdim=True)).cpu()
            entry = {
                "step": step,
                "seconds": round(time.monotonic() - began, 1),
                "bits": round(loss.item() / math.log(2), 4),
                "balance": round(balance.item(), 4),
                "least": round(share.min().item(), 4),
                "most": round(share.max().item(), 4),
            }
            log.append(entry)
            if step % 1000 == 0 or step < 1000 or step == total:
                print(json.dumps(entry), flush=True)
        if step % 3000 == 0:
            model.save(options.out)
    model.save(options.out)
    facts = {
        "steps": step,
        "batch": options.batch,
        "context": options.context,
        "rate": options.rate,
        "balance": options.balance,
        "prose": options.prose,
        "seed": options.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.monotonic() - began),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "log": log,
    }
    (options.out / "training.json").write_text(json.dumps(facts, indent=0) + "\n")


if __name__ == "__main__":
    main()
