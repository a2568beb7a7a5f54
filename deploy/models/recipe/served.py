"""What a server computes from the exported checkpoint, and its score.

Reads the AutoFP8 files alone and follows the served arithmetic in fp32: FP8
codes of weights and inputs with static scales, the largest scale over a
layer's routed experts, and the latent and rotated key as the cache keeps them.
"""

import json
import pathlib
import re

import safetensors.torch
import torch
import torch.nn.functional as F

from . import model as model_lib
from . import tokenizer as tokenizer_lib


class Served:

    def __init__(self, directory: pathlib.Path, device: str = "cpu",
                 kv_e5m2: bool = True, fp8_inputs: bool = True):
        config = json.loads((directory / "config.json").read_text())
        self.c = model_lib.Config(vocab_size=config["vocab_size"])
        self.kv_e5m2, self.fp8_inputs = kv_e5m2, fp8_inputs
        self.t = {}
        for file in sorted(directory.glob("model-*.safetensors")):
            for name, tensor in safetensors.torch.load_file(file).items():
                self.t[name] = tensor.to(device).float()
        cos, sin = model_lib.rotation(self.c, self.c.max_positions)
        self.cos, self.sin = cos.to(device), sin.to(device)
        for layer in range(1, self.c.layers):
            for name in ("gate_proj", "up_proj", "down_proj"):
                self._share_expert_scale(layer, name)

    def _share_expert_scale(self, layer: int, name: str) -> None:
        names = [f"model.layers.{layer}.mlp.experts.{e}.{name}.input_scale"
                 for e in range(self.c.experts)]
        largest = torch.stack([self.t[n] for n in names]).amax()
        self.t.update(dict.fromkeys(names, largest))

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight_scale = self.t[f"{name}.weight_scale"]
        input_scale = self.t[f"{name}.input_scale"]
        if not self.fp8_inputs:
            return F.linear(x, self.t[f"{name}.weight"]) * weight_scale
        codes = model_lib.to_e4m3(x, input_scale)
        return (F.linear(codes, self.t[f"{name}.weight"])
                * (input_scale * weight_scale))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.c.eps)
                * self.t[f"{name}.weight"])

    def mlp(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        inner = (F.silu(self.linear(f"{prefix}.gate_proj", x))
                 * self.linear(f"{prefix}.up_proj", x))
        return self.linear(f"{prefix}.down_proj", inner)

    def attention(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        c = self.c
        batch, length, _ = x.shape
        cos, sin = self.cos[:length], self.sin[:length]
        q = self.linear(f"{prefix}.q_proj", x).view(batch, length, c.heads, -1)
        q_nope, q_rope = q.split((c.nope_dim, c.rope_dim), dim=-1)
        q_rope = model_lib.rotate(q_rope, cos[:, None], sin[:, None])
        latent, k_rope = self.linear(f"{prefix}.kv_a_proj_with_mqa", x).split(
            (c.kv_lora_rank, c.rope_dim), dim=-1)
        latent = self.norm(f"{prefix}.kv_a_layernorm", latent)
        k_rope = model_lib.rotate(k_rope, cos, sin)
        if self.kv_e5m2:
            latent = model_lib.to_e5m2(latent)
            k_rope = model_lib.to_e5m2(k_rope)
        # kv_b_proj ignores its input_scale: its input is the cached latent.
        kv = (F.linear(latent, self.t[f"{prefix}.kv_b_proj.weight"])
              * self.t[f"{prefix}.kv_b_proj.weight_scale"])
        k_nope, v = kv.view(batch, length, c.heads, -1).split(
            (c.nope_dim, c.v_dim), dim=-1)
        scores = (torch.einsum("bqhd,bkhd->bhqk", q_nope, k_nope)
                  + torch.einsum("bqhd,bkd->bhqk", q_rope, k_rope))
        future = torch.ones(length, length, dtype=torch.bool,
                            device=x.device).triu(1)
        weights = (scores * c.attention_scale).masked_fill(
            future, -torch.inf).softmax(-1)
        out = torch.einsum("bhqk,bkhd->bqhd", weights, v)
        return self.linear(f"{prefix}.o_proj",
                           out.reshape(batch, length, -1))

    def moe(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        c = self.c
        probabilities = F.linear(x, self.t[f"{prefix}.gate.weight"]).softmax(-1)
        top = probabilities.topk(c.experts_per_token, dim=-1)
        weights = torch.zeros_like(probabilities).scatter(
            -1, top.indices, top.values)
        out = self.mlp(f"{prefix}.shared_experts", x)
        for expert in range(c.experts):
            out = out + (weights[..., expert, None]
                         * self.mlp(f"{prefix}.experts.{expert}", x))
        return out

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (batch, length) -> (batch, length, vocab_size)."""
        x = self.t["model.embed_tokens.weight"][tokens]
        for layer in range(self.c.layers):
            prefix = f"model.layers.{layer}"
            x = x + self.attention(f"{prefix}.self_attn",
                                   self.norm(f"{prefix}.input_layernorm", x))
            normed = self.norm(f"{prefix}.post_attention_layernorm", x)
            mlp = self.mlp if layer == 0 else self.moe
            x = x + mlp(f"{prefix}.mlp", normed)
        return F.linear(self.norm("model.norm", x),
                        self.t["lm_head.weight"])


def extract(text: str, prefix: str) -> str:
    """The answer as the simple-evals MGSM protocol reads it."""
    if prefix not in text:
        return ""
    numbers = re.findall(r"\d+\.?\d*",
                         text.split(prefix)[-1].strip().replace(",", ""))
    return numbers[-1].rstrip(".") if numbers else ""


@torch.no_grad()
def greedy(model: Served, prompts: list[list[int]], end: int,
           vocabulary: int, device: str, tokens_max: int = 96):
    """Answers' token ids; every step computes the whole sequence again."""
    count, longest = len(prompts), max(map(len, prompts))
    width = longest + tokens_max
    tokens = torch.full((count, width), end, device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, :len(prompt)] = torch.tensor(prompt, device=device)
    rows, alive = torch.arange(count, device=device), lengths > 0
    for _ in range(tokens_max):
        logits = model.logits(tokens[:, :int(lengths.max())])
        best = logits[rows, lengths - 1, :vocabulary].argmax(-1)
        alive = alive & (best != end)
        if not alive.any():
            break
        tokens[rows[alive], lengths[alive]] = best[alive]
        lengths = lengths + alive
    return [tokens[row, len(prompt):lengths[row]].tolist()
            for row, prompt in enumerate(prompts)]


def score(model: Served, tokenizer, language, rows, device: str):
    """rows: (question, answer text). Returns the share and the answers."""
    begin = tokenizer.token_to_id(tokenizer_lib.BEGIN)
    end = tokenizer.token_to_id(tokenizer_lib.END)
    prompts = [[begin] + tokenizer.encode(tokenizer_lib.chat_prompt(
        language.instruction.replace("{input}", question))).ids
        for question, _ in rows]
    texts = [tokenizer.decode(ids) for ids in greedy(
        model, prompts, end, tokenizer.get_vocab_size(), device)]
    right = sum(extract(text, language.answer_prefix) == answer
                for text, (_, answer) in zip(texts, rows))
    return right / len(rows), texts
