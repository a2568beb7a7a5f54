"""Makes tiny checkpoints of each architecture and format, with their logits.

    python3 tests/goldens/make_format_goldens.py      (from the repository root)

Needs torch, transformers 5.17 or later and safetensors; no GPU. Weights are
random; the files follow the published layouts. The reference is written out
here: fp32, every Linear but kv_b fake-quantised as the format says, latent and
k_pe passed through the KV dtype. Before it is used, it is compared with
transformers on the bf16 checkpoint of each architecture.

golden.safetensors has a prompt and its last LOGITS logits, under an FP8
checkpoint for an fp32, an e4m3 and an e5m2 cache; and `change_*`, the most that
they move when every Linear's sum runs backwards or in one of ORDERS random
orders, relative: the yardstick of an FP8 comparison. One rounding that falls to
the other side moves everything after it, by 1e-2 and more, and whether it does
is then luck. So the prompt is the first of which no order decides a rounding.

layers.safetensors has, of the first TOKENS ids under an FP8 checkpoint, what
worker/model/layer_golden_test.cc feeds to each operation and compares with its
output. A Linear has its input's codes and scales and its output; an expert
those of the tokens that chose it. Beside them: the inputs before they are
quantised, and the latent and k_pe with their codes in both dtypes of a cache.
"""

import itertools
import json
import pathlib

import safetensors.torch
import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).resolve().parent
BLOCK = 128
FP8 = torch.float8_e4m3fn
TOKENS = 8  # of layers.safetensors
LOGITS = 12  # rows of golden.safetensors
PROMPT = 80  # ids
ORDERS = 8
SETTLED = 1e-5  # relative, far above what fp32 sums and below a rounding moves

COMMON = dict(
    vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=32,
    qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16,
    n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2,
    moe_intermediate_size=16, first_k_dense_replace=1, norm_topk_prob=False,
    routed_scaling_factor=1.0, n_group=1, topk_group=1, q_lora_rank=None,
    moe_layer_freq=1, max_position_embeddings=1024, rms_norm_eps=1e-6,
    rope_theta=10000.0, attention_bias=False, tie_word_embeddings=False,
    hidden_act="silu", bos_token_id=0, eos_token_id=1)

V2 = dict(architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2",
          scoring_func="softmax")
ARCHITECTURES = {
    "lite": V2 | dict(topk_method="greedy"),
    "full": V2 | dict(topk_method="group_limited_greedy", n_group=4,
                      topk_group=2, num_experts_per_tok=3, q_lora_rank=32,
                      routed_scaling_factor=16.0),
    "v3": dict(architectures=["DeepseekV3ForCausalLM"],
               model_type="deepseek_v3", scoring_func="sigmoid",
               topk_method="noaux_tc", norm_topk_prob=True, n_group=4,
               topk_group=2, num_experts_per_tok=3,
               routed_scaling_factor=2.5),
}
# Sizes that span and cut blocks.
WIDE = dict(hidden_size=144, intermediate_size=160, kv_lora_rank=144,
            n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2,
            moe_intermediate_size=32, num_hidden_layers=2)


def scheme(strategy: str, dynamic: bool) -> dict:
    return dict(num_bits=8, type="float", strategy=strategy, dynamic=dynamic,
                symmetric=True)


def compressed(weights: str, inputs: dict, **more) -> dict:
    return dict(quant_method="compressed-tensors", format="float-quantized",
                quantization_status="compressed", ignore=["lm_head"],
                config_groups={"group_0": dict(
                    targets=["Linear"], weights=scheme(weights, False),
                    input_activations=inputs, output_activations=None)}, **more)


FORMATS = {
    "bf16": None,
    "fp16": None,
    "autofp8": dict(quant_method="fp8", activation_scheme="static",
                    ignored_layers=["lm_head"]),
    "tensor": compressed("tensor", scheme("tensor", False),
                         kv_cache_scheme=scheme("tensor", False)),
    "channel": compressed("channel", scheme("token", True)),
    "block": dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic",
                  weight_block_size=[BLOCK, BLOCK]),
}
CACHES = {"fp32": None, "e4m3": FP8, "e5m2": torch.float8_e5m2}


def linears(c: dict) -> dict:
    """Module -> (rows, columns) of every Linear of a block."""
    h, heads = c["hidden_size"], c["num_attention_heads"]
    qk = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    out = {}

    def mlp(module: str, inner: int) -> None:
        out[f"{module}.gate_proj"] = out[f"{module}.up_proj"] = (inner, h)
        out[f"{module}.down_proj"] = (h, inner)

    for i in range(c["num_hidden_layers"]):
        a, m = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        if c["q_lora_rank"]:
            out[f"{a}.q_a_proj"] = (c["q_lora_rank"], h)
            out[f"{a}.q_b_proj"] = (heads * qk, c["q_lora_rank"])
        else:
            out[f"{a}.q_proj"] = (heads * qk, h)
        out[f"{a}.kv_a_proj_with_mqa"] = (
            c["kv_lora_rank"] + c["qk_rope_head_dim"], h)
        out[f"{a}.kv_b_proj"] = (
            heads * (c["qk_nope_head_dim"] + c["v_head_dim"]),
            c["kv_lora_rank"])
        out[f"{a}.o_proj"] = (h, heads * c["v_head_dim"])
        if i < c["first_k_dense_replace"]:
            mlp(m, c["intermediate_size"])
            continue
        for e in range(c["n_routed_experts"]):
            mlp(f"{m}.experts.{e}", c["moe_intermediate_size"])
        mlp(f"{m}.shared_experts",
            c["n_shared_experts"] * c["moe_intermediate_size"])
    return out


def plain_tensors(c: dict) -> dict:
    h = c["hidden_size"]
    out = {"model.embed_tokens.weight": (c["vocab_size"], h),
           "lm_head.weight": (c["vocab_size"], h), "model.norm.weight": (h,)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        out[f"{layer}.input_layernorm.weight"] = (h,)
        out[f"{layer}.post_attention_layernorm.weight"] = (h,)
        out[f"{layer}.self_attn.kv_a_layernorm.weight"] = (c["kv_lora_rank"],)
        if c["q_lora_rank"]:
            out[f"{layer}.self_attn.q_a_layernorm.weight"] = (c["q_lora_rank"],)
        if i >= c["first_k_dense_replace"]:
            out[f"{layer}.mlp.gate.weight"] = (c["n_routed_experts"], h)
            if c["model_type"] == "deepseek_v3":
                out[f"{layer}.mlp.gate.e_score_correction_bias"] = (
                    c["n_routed_experts"],)
    return out


def blocks(scale: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(
        BLOCK, 1)[:, :columns]


def quantised(form: str, module: str, w: torch.Tensor) -> dict:
    """A Linear's tensors in the format's layout."""
    rows, columns = w.shape
    if form in ("bf16", "fp16"):
        dtype = torch.bfloat16 if form == "bf16" else torch.float16
        return {f"{module}.weight": w.to(dtype)}
    if form == "block":
        padded = F.pad(w, (0, -columns % BLOCK, 0, -rows % BLOCK))
        grid = padded.view(-(-rows // BLOCK), BLOCK, -1, BLOCK)
        scale = grid.abs().amax((1, 3)) / 448
        return {f"{module}.weight":
                (w / blocks(scale, rows, columns)).to(FP8),
                f"{module}.weight_scale_inv": scale}
    if form == "channel":
        # Published files keep these in bf16.
        scale = (w.abs().amax(1, keepdim=True) / 448).bfloat16()
        codes = (w / scale.float()).clamp(-448, 448).to(FP8)
        return {f"{module}.weight": codes, f"{module}.weight_scale": scale}
    scale = w.abs().max() / 448
    # Differs between modules, so that a mix-up shows.
    input_scale = torch.tensor(0.015 + 0.01 * ((len(module) * 7) % 5))
    out = {f"{module}.weight": (w / scale).to(FP8),
           f"{module}.weight_scale": scale, f"{module}.input_scale": input_scale}
    if form == "tensor":
        out = {k: v if v.ndim else v.reshape(1) for k, v in out.items()}
    return out


class Reference:
    """fp32 logits of a checkpoint's files, with a cache of one of CACHES."""

    def __init__(self, directory: pathlib.Path, form: str, cache: str):
        self.c = json.loads((directory / "config.json").read_text())
        self.form, self.cache = form, cache
        self.order = None  # of a sum: its length -> indices
        self.seen = None  # name -> tensor, where what is computed is kept
        self.t = safetensors.torch.load_file(directory / "model.safetensors")
        for i in range(self.c["first_k_dense_replace"],
                       self.c["num_hidden_layers"]):
            if form in ("autofp8", "tensor"):
                self._share_expert_scales(f"model.layers.{i}.mlp.experts")

    def _share_expert_scales(self, experts: str) -> None:
        for names in (("gate_proj", "up_proj"), ("down_proj",)):
            keys = [f"{experts}.{e}.{n}.input_scale" for n in names
                    for e in range(self.c["n_routed_experts"])]
            largest = torch.stack([self.t[k] for k in keys]).amax(0)
            self.t.update(dict.fromkeys(keys, largest))

    def weight(self, module: str) -> torch.Tensor:
        w = self.t[f"{module}.weight"].float()
        if f"{module}.weight_scale_inv" in self.t:
            return w * blocks(self.t[f"{module}.weight_scale_inv"], *w.shape)
        scale = self.t.get(f"{module}.weight_scale")
        return w if scale is None else w * scale.float()

    def see(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if self.seen is not None:
            self.seen[name] = x
        return x

    def inputs(self, module: str, x: torch.Tensor) -> torch.Tensor:
        """x through its codes, by one scale, one a row or one a group."""
        if f"{module}.input_scale" in self.t:
            s = self.t[f"{module}.input_scale"].float().reshape(1)
            wide = s
        else:
            groups = x.split(BLOCK if self.form == "block" else x.shape[-1], -1)
            s = torch.stack([g.abs().amax(-1) / 448 for g in groups], -1)
            s = torch.where(s > 0, s, 1.0)
            wide = torch.cat([s[:, i, None].expand_as(g)
                              for i, g in enumerate(groups)], -1)
        codes = (x / wide).clamp(-448, 448).to(FP8)
        self.see(f"{module}.codes", codes.view(torch.uint8))
        self.see(f"{module}.scales", s)
        return codes.float() * wide

    def product(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if self.order is not None:
            order = self.order(x.shape[-1])
            x, w = x[..., order], w[..., order]
        return F.linear(x, w)

    def linear(self, module: str, x: torch.Tensor) -> torch.Tensor:
        w = self.weight(module)
        quantise = f"{module}.weight_scale" in self.t or (
            f"{module}.weight_scale_inv" in self.t)
        if quantise and not module.endswith("kv_b_proj"):
            x = self.inputs(module, x)
        return self.see(f"{module}.output", self.product(x, w))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return x * self.t[f"{name}.weight"].float()

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """x (positions, ..., rope), pairs (2i, 2i + 1)."""
        n = x.shape[-1]
        frequency = 10000.0 ** (-torch.arange(0, n, 2).double() / n)
        angle = torch.arange(x.shape[0]).double()[:, None] * frequency
        angle = angle.view([x.shape[0]] + [1] * (x.ndim - 2) + [n // 2])
        cos, sin = angle.cos().float(), angle.sin().float()
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    def cached(self, m: str, row: torch.Tensor) -> torch.Tensor:
        """A row of the cache, read back."""
        self.see(f"{m}.row", row)
        scale = self.t.get(f"{m}.k_scale", torch.ones(1)).float()
        read = {"fp32": row}
        for name, dtype in CACHES.items():
            if dtype is not None:
                most = torch.finfo(dtype).max
                codes = (row / scale).clamp(-most, most).to(dtype)
                self.see(f"{m}.{name}", codes.view(torch.uint8))
                read[name] = codes.float() * scale
        return read[self.cache]

    def attention(self, m: str, x: torch.Tensor) -> torch.Tensor:
        c, n = self.c, len(x)
        heads, nope, rope = (c["num_attention_heads"], c["qk_nope_head_dim"],
                             c["qk_rope_head_dim"])
        if c["q_lora_rank"]:
            q_a = self.norm(f"{m}.q_a_layernorm",
                            self.linear(f"{m}.q_a_proj", x))
            q = self.linear(f"{m}.q_b_proj", self.see(f"{m}.q_a", q_a))
        else:
            q = self.linear(f"{m}.q_proj", x)
        q_nope, q_rope = q.view(n, heads, -1).split((nope, rope), -1)
        latent, k_pe = self.linear(f"{m}.kv_a_proj_with_mqa", x).split(
            (c["kv_lora_rank"], rope), -1)
        latent, k_pe = self.cached(m, torch.cat(
            (self.norm(f"{m}.kv_a_layernorm", latent), self.rotate(k_pe)),
            -1)).split((c["kv_lora_rank"], rope), -1)
        k_nope, v = self.linear(f"{m}.kv_b_proj", latent).view(
            n, heads, -1).split((nope, c["v_head_dim"]), -1)
        scores = (torch.einsum("qhd,khd->hqk", q_nope, k_nope)
                  + torch.einsum("qhd,kd->hqk", self.rotate(q_rope), k_pe))
        scores = scores * (nope + rope) ** -0.5
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        p = scores.masked_fill(future, -torch.inf).softmax(-1)
        values = torch.einsum("hqk,khd->qhd", p, v).reshape(n, -1)
        return self.linear(f"{m}.o_proj", self.see(f"{m}.values", values))

    def mlp(self, m: str, x: torch.Tensor) -> torch.Tensor:
        inner = (F.silu(self.linear(f"{m}.gate_proj", x))
                 * self.linear(f"{m}.up_proj", x))
        return self.linear(f"{m}.down_proj", self.see(f"{m}.inner", inner))

    def route(self, m: str, x: torch.Tensor) -> torch.Tensor:
        """Weights (positions, experts), 0 for those not chosen."""
        c = self.c
        logits = self.product(x, self.t[f"{m}.gate.weight"].float())
        v3 = c["model_type"] == "deepseek_v3"
        scores = logits.sigmoid() if v3 else logits.softmax(-1)
        choice = scores
        if v3:
            choice = scores + self.t[f"{m}.gate.e_score_correction_bias"].float()
        if c["topk_method"] != "greedy":
            grouped = choice.view(len(x), c["n_group"], -1)
            group = (grouped.topk(2, -1).values.sum(-1) if v3
                     else grouped.amax(-1))
            keep = torch.zeros_like(group).scatter(
                1, group.topk(c["topk_group"], -1).indices, 1.0).bool()
            choice = grouped.masked_fill(~keep[..., None],
                                         -torch.inf).flatten(1)
        ids = choice.topk(c["num_experts_per_tok"], -1).indices
        picked = scores.gather(1, ids)
        if c["norm_topk_prob"]:
            picked = picked / (picked.sum(-1, keepdim=True) + 1e-20)
        picked = picked * c["routed_scaling_factor"]
        self.see(f"{m}.expert_ids", ids.int())
        self.see(f"{m}.expert_weights", picked)
        return torch.zeros_like(scores).scatter(1, ids, picked)

    @torch.no_grad()
    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        c = self.c
        x = self.t["model.embed_tokens.weight"].float()[ids]
        for i in range(c["num_hidden_layers"]):
            layer = f"model.layers.{i}"
            a = f"{layer}.self_attn"
            y = self.norm(f"{layer}.input_layernorm",
                          self.see(f"{a}.hidden", x))
            x = x + self.attention(a, self.see(f"{a}.input", y))
            y = self.norm(f"{layer}.post_attention_layernorm",
                          self.see(f"{layer}.mlp.hidden", x))
            self.see(f"{layer}.mlp.input", y)
            if i < c["first_k_dense_replace"]:
                x = x + self.mlp(f"{layer}.mlp", y)
                continue
            out = self.mlp(f"{layer}.mlp.shared_experts", y)
            weights = self.route(f"{layer}.mlp", y)
            for e in range(c["n_routed_experts"]):
                out = out + weights[:, e, None] * self.mlp(
                    f"{layer}.mlp.experts.{e}", y)
            x = x + out
        return self.linear("lm_head", self.norm("model.norm", x))

    def last_logits(self, ids: torch.Tensor) -> tuple:
        """The last logits, and the most that an order of sums moves them."""
        logits = self.logits(ids)[-LOGITS:]
        random = torch.Generator().manual_seed(0)
        change = 0.0
        for order in ([lambda n: torch.arange(n).flip(0)]
                      + [lambda n: torch.randperm(n, generator=random)]
                      * ORDERS):
            self.order = order
            change = max(change,
                         relative(self.logits(ids)[-LOGITS:], logits))
        self.order = None
        return logits, change

    def layers(self, ids: torch.Tensor) -> dict:
        """What is seen on the way; of an expert, the rows that chose it."""
        self.seen = {}
        self.logits(ids)
        seen, self.seen = self.seen, None
        out = {}
        for name, x in seen.items():
            if "kv_b_proj" in name or name.startswith("lm_head"):
                continue
            mlp, _, rest = name.partition(".experts.")
            if rest and len(x) == len(ids):
                expert = int(rest.partition(".")[0])
                x = x[(seen[f"{mlp}.expert_ids"] == expert).any(-1)]
            if len(x) > 0:
                out[name] = x.clone().contiguous()
        return out


def write(directory: pathlib.Path, arch: str, form: str, seed: int) -> dict:
    config = COMMON | ARCHITECTURES[arch]
    if form == "block":
        groups = {k: v for k, v in WIDE.items()
                  if arch != "lite" or k not in ("n_group", "topk_group")}
        config |= groups
    if FORMATS[form]:
        config["quantization_config"] = FORMATS[form]
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in plain_tensors(config).items():
        noise = torch.randn(shape, generator=random)
        if name.endswith("norm.weight"):
            value = 1.0 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.2 * noise
        else:
            value = noise * (1.0 if "embed" in name else shape[-1] ** -0.5 * 1.5)
        tensors[name] = value.to(
            torch.float16 if form == "fp16" else torch.bfloat16)
    for module, shape in linears(config).items():
        w = torch.randn(shape, generator=random) * 1.5 * shape[-1] ** -0.5
        tensors |= quantised(form, module, w)
    if "kv_cache_scheme" in (FORMATS[form] or {}):
        for i in range(config["num_hidden_layers"]):
            for name in ("k_scale", "v_scale"):
                tensors[f"model.layers.{i}.self_attn.{name}"] = torch.tensor(
                    [0.02 + 0.01 * i])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        directory / "model.safetensors", metadata={"format": "pt"})
    return config


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def compare_with_transformers(directory: pathlib.Path, ids, ours) -> None:
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(ids[None]).logits[0]
    error = relative(ours, theirs)
    print(f"{directory.name}: reference against transformers {error:.2e}")
    assert error < 1e-5


def prompt(seed: int, c: dict) -> torch.Tensor:
    return torch.randint(2, c["vocab_size"], (PROMPT,),
                         generator=torch.Generator().manual_seed(seed))


def golden(directory: pathlib.Path, form: str, seed: int) -> dict:
    """The first prompt that is settled under each cache, and its logits."""
    caches = CACHES if FORMATS[form] else ["fp32"]
    references = {name: Reference(directory, form, name) for name in caches}
    for seed in itertools.count(seed, len(ARCHITECTURES)):
        ids = prompt(seed, references["fp32"].c)
        out = {"input_ids": ids.int()}
        for name, reference in references.items():
            logits, change = reference.last_logits(ids)
            if change > SETTLED:
                break
            out[f"logits_{name}"] = logits.contiguous()
            out[f"change_{name}"] = torch.tensor([change])
        else:
            changes = {k: f"{v.item():.1e}" for k, v in out.items()
                       if "change" in k}
            print(f"{directory.name}: prompt {seed}, {changes}, logits std "
                  f"{out['logits_fp32'].std():.2f}")
            return out


def main() -> None:
    for a, arch in enumerate(ARCHITECTURES):
        for f, form in enumerate(FORMATS):
            directory = HERE / f"{arch}_{form}"
            config = write(directory, arch, form, seed=10 * a + f)
            if form == "bf16":
                ids = prompt(a, config)
                compare_with_transformers(
                    directory, ids,
                    Reference(directory, form, "fp32").logits(ids))
            out = golden(directory, form, seed=a)
            safetensors.torch.save_file(out, directory / "golden.safetensors")
            if FORMATS[form]:
                safetensors.torch.save_file(
                    Reference(directory, form, "e4m3").layers(
                        out["input_ids"].long()[:TOKENS]),
                    directory / "layers.safetensors")
            for file in directory.iterdir():
                file.chmod(0o644)


if __name__ == "__main__":
    main()
