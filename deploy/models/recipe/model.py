"""The training form of a small DeepSeek-V2: fast, and equal to the served one.

Attention is in the expanded (MHA) form and all routed experts are computed for
every token, the ones not chosen weighted by zero: at this size that is one
large matrix product and faster than routing. Names of parameters follow the
checkpoint's, with a layer's experts stacked.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn

E4M3_MAX = 448.0
E5M2_MAX = 57344.0


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden: int = 384
    layers: int = 6
    heads: int = 4
    kv_lora_rank: int = 512
    nope_dim: int = 128
    rope_dim: int = 64
    v_dim: int = 128
    dense_inner: int = 1024
    experts: int = 16
    experts_per_token: int = 4
    expert_inner: int = 96
    shared_experts: int = 2
    eps: float = 1e-6
    rope_theta: float = 10000.0
    yarn_factor: float = 40.0
    yarn_original: int = 4096
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_mscale: float = 0.707
    yarn_mscale_all_dim: float = 0.707
    max_positions: int = 4096

    @property
    def attention_scale(self) -> float:
        m = 0.1 * self.yarn_mscale_all_dim * math.log(self.yarn_factor) + 1.0
        return (self.nope_dim + self.rope_dim) ** -0.5 * m * m


def yarn_frequencies(config: Config) -> torch.Tensor:
    """Angle per position of each of the rope_dim / 2 pairs."""
    half = config.rope_dim // 2
    plain = config.rope_theta ** (
        -torch.arange(0, config.rope_dim, 2, dtype=torch.float64)
        / config.rope_dim)

    def boundary(turns: float) -> float:
        return (config.rope_dim
                * math.log(config.yarn_original / (turns * 2 * math.pi))
                / (2 * math.log(config.rope_theta)))

    low = max(math.floor(boundary(config.yarn_beta_fast)), 0)
    high = min(math.ceil(boundary(config.yarn_beta_slow)), config.rope_dim - 1)
    ramp = ((torch.arange(half, dtype=torch.float64) - low)
            / max(high - low, 1e-3)).clamp(0, 1)
    return (plain * (1 - ramp) + plain / config.yarn_factor * ramp).float()


def rotation(config: Config, positions: int) -> tuple[torch.Tensor,
                                                      torch.Tensor]:
    """cos and sin, (positions, rope_dim / 2) each; mscale cancels to 1."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32),
                         yarn_frequencies(config))
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
    """Rotates the pairs (2i, 2i + 1) of the last axis."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos),
                       dim=-1).flatten(-2)


def to_e4m3(x: torch.Tensor, scale) -> torch.Tensor:
    """Codes of x / scale, saturating, as float32 numbers."""
    codes = (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX)
    return codes.to(torch.float8_e4m3fn).float()


def to_e5m2(x: torch.Tensor) -> torch.Tensor:
    return x.float().clamp(-E5M2_MAX, E5M2_MAX).to(torch.float8_e5m2).float()


def straight_through(quantised: torch.Tensor, x: torch.Tensor):
    """The value of `quantised` with the gradient of x."""
    return quantised.to(x.dtype).detach() + (x - x.detach())


class Linear(nn.Module):
    """A Linear of a block, or a stack of them that share their input.

    weight: (out, in), or (stack, out, in) with one weight scale each.
    """

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        nn.init.normal_(self.weight, std=0.02)
        # Largest |input| seen in calibration; of a stack, that of each expert's
        # own tokens. Served, a stack uses the largest scale of its experts.
        self.register_buffer("input_peak", torch.full(shape[:-2], E4M3_MAX))

    @property
    def input_scale(self) -> torch.Tensor:
        return self.input_peak.amax() / E4M3_MAX

    def weight_scale(self) -> torch.Tensor:
        """Broadcasts over the weight."""
        peak = self.weight.detach().abs().amax(dim=(-2, -1), keepdim=True)
        return peak.float().clamp_min(1e-8) / E4M3_MAX

    def quantised_weight(self, quantise: bool) -> torch.Tensor:
        if not quantise:
            return self.weight.bfloat16()
        scale = self.weight_scale()
        return straight_through(to_e4m3(self.weight.detach(), scale) * scale,
                                self.weight).bfloat16()

    def quantised_input(self, x: torch.Tensor, quantise: bool):
        if not quantise:
            return x.bfloat16()
        scale = self.input_scale
        return straight_through(to_e4m3(x.detach(), scale) * scale,
                                x).bfloat16()

    def forward(self, x: torch.Tensor, quantise: bool) -> torch.Tensor:
        weight = self.quantised_weight(quantise)
        return F.linear(self.quantised_input(x, quantise),
                        weight.flatten(0, -2))


class RMSNorm(nn.Module):

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True)
                               + self.eps) * self.weight


class Attention(nn.Module):

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        c = config
        self.q_proj = Linear(c.heads * (c.nope_dim + c.rope_dim), c.hidden)
        self.kv_a_proj_with_mqa = Linear(c.kv_lora_rank + c.rope_dim, c.hidden)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, c.eps)
        self.kv_b_proj = Linear(c.heads * (c.nope_dim + c.v_dim),
                                c.kv_lora_rank)
        self.o_proj = Linear(c.hidden, c.heads * c.v_dim)

    def forward(self, x, cos, sin, quantise: bool):
        c = self.config
        batch, length, _ = x.shape
        q = self.q_proj(x, quantise).view(batch, length, c.heads, -1)
        q_nope, q_rope = q.split((c.nope_dim, c.rope_dim), dim=-1)
        q_rope = rotate(q_rope, cos[:, None], sin[:, None])
        latent, k_rope = self.kv_a_proj_with_mqa(x, quantise).split(
            (c.kv_lora_rank, c.rope_dim), dim=-1)
        latent = self.kv_a_layernorm(latent)
        k_rope = rotate(k_rope, cos, sin)
        if quantise:  # what the e5m2 cache keeps
            latent = straight_through(to_e5m2(latent.detach()), latent)
            k_rope = straight_through(to_e5m2(k_rope.detach()), k_rope)
        # The served kv_b_proj reads the cached latent as it is.
        kv = F.linear(latent.bfloat16(),
                      self.kv_b_proj.quantised_weight(quantise))
        k_nope, v = kv.view(batch, length, c.heads, -1).split(
            (c.nope_dim, c.v_dim), dim=-1)
        q = torch.cat((q_nope, q_rope.to(q_nope.dtype)), dim=-1)
        k = torch.cat((k_nope, k_rope.to(k_nope.dtype)[:, :, None].expand(
            -1, -1, c.heads, -1)), dim=-1)
        # The flash kernel wants one width for q, k and v.
        v = F.pad(v, (0, q.shape[-1] - c.v_dim))
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
            is_causal=True, scale=c.attention_scale)
        out = out[..., :c.v_dim].transpose(1, 2).reshape(batch, length, -1)
        return self.o_proj(out, quantise)


class DenseMlp(nn.Module):

    def __init__(self, hidden: int, inner: int):
        super().__init__()
        self.gate_proj = Linear(inner, hidden)
        self.up_proj = Linear(inner, hidden)
        self.down_proj = Linear(hidden, inner)

    def forward(self, x, quantise: bool):
        inner = F.silu(self.gate_proj(x, quantise)) * self.up_proj(x, quantise)
        return self.down_proj(inner, quantise)


class Moe(nn.Module):

    def __init__(self, config: Config):
        super().__init__()
        c = config
        self.config = c
        self.gate = nn.Parameter(torch.empty(c.experts, c.hidden))
        nn.init.normal_(self.gate, std=0.02)
        self.gate_proj = Linear(c.experts, c.expert_inner, c.hidden)
        self.up_proj = Linear(c.experts, c.expert_inner, c.hidden)
        self.down_proj = Linear(c.experts, c.hidden, c.expert_inner)
        self.shared_experts = DenseMlp(c.hidden,
                                       c.shared_experts * c.expert_inner)

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (…, experts), zero where not chosen, and probabilities."""
        probabilities = F.linear(x.float(), self.gate.float()).softmax(-1)
        top = probabilities.topk(self.config.experts_per_token, dim=-1)
        weights = torch.zeros_like(probabilities).scatter(
            -1, top.indices, top.values)
        return weights, probabilities

    def forward(self, x, quantise: bool):
        c = self.config
        weights, probabilities = self.route(x)
        inner = (F.silu(self.gate_proj(x, quantise))
                 * self.up_proj(x, quantise)).unflatten(-1, (c.experts, -1))
        inner = self.down_proj.quantised_input(inner, quantise)
        inner = (inner * weights[..., None].to(inner.dtype)).flatten(-2)
        down = self.down_proj.quantised_weight(quantise)
        routed = F.linear(inner, down.transpose(0, 1).reshape(c.hidden, -1))
        # Switch-style balance: 1 when all experts are used alike.
        share = (weights > 0).float().mean((0, 1)) / c.experts_per_token
        balance = c.experts * (share * probabilities.mean((0, 1))).sum()
        return routed + self.shared_experts(x, quantise), balance


class Block(nn.Module):

    def __init__(self, config: Config, dense: bool):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.eps)
        self.mlp = (DenseMlp(config.hidden, config.dense_inner) if dense
                    else Moe(config))
        self.dense = dense

    def forward(self, x, cos, sin, quantise: bool):
        """x: the fp32 residual, (batch, length, hidden)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, quantise)
        normed = self.post_attention_layernorm(x)
        if self.dense:
            return x + self.mlp(normed, quantise), x.new_zeros(())
        out, balance = self.mlp(normed, quantise)
        return x + out, balance


class Model(nn.Module):

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # Wider than what a block adds at first, so that tokens differ before
        # the first router and all experts are used from the start.
        self.embed_tokens = nn.Parameter(
            torch.randn(config.vocab_size, config.hidden) * 0.2)
        self.blocks = nn.ModuleList(
            Block(config, dense=layer == 0) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.eps)
        self.lm_head = nn.Parameter(
            torch.randn(config.vocab_size, config.hidden) * 0.02)
        cos, sin = rotation(config, config.max_positions)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        # Small at first, so that the residual grows evenly with depth.
        for block in self.blocks:
            for linear in (block.self_attn.o_proj, block.mlp.down_proj):
                linear.weight.data /= math.sqrt(2 * config.layers)

    def hidden_states(self, tokens: torch.Tensor, quantise: bool):
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = F.embedding(tokens, self.embed_tokens).float()
        balance = 0.0
        for block in self.blocks:
            x, block_balance = block(x, cos, sin, quantise)
            balance = balance + block_balance
        return self.norm(x), balance

    def loss(self, tokens: torch.Tensor, weights: torch.Tensor,
             quantise: bool, balance_weight: float):
        """tokens (batch, length + 1); weights (batch, length) by target."""
        x, balance = self.hidden_states(tokens[:, :-1], quantise)
        losses = token_losses(x, self.lm_head, tokens[:, 1:])
        return ((losses * weights).sum() / weights.sum()
                + balance_weight * balance)


def token_losses(x, lm_head, targets):
    logits = F.linear(x.bfloat16(), lm_head.bfloat16()).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(),
                           reduction="none").view(targets.shape)
