"""Writes the checkpoint in AutoFP8's format, sharded, with its config."""

import json
import pathlib

import safetensors.torch
import torch

from . import model as model_lib

SHARD_BYTES = 11_000_000


def tensors(model: model_lib.Model, fp8: bool) -> dict[str, torch.Tensor]:
    """Checkpoint names to tensors; not fp8: every weight in fp32, unscaled."""
    out = {}

    def plain(name: str, tensor: torch.Tensor) -> None:
        tensor = tensor.detach().cpu()
        out[name] = (tensor.bfloat16() if fp8 else tensor.clone()).contiguous()

    def one_linear(name, weight, scale, peak) -> None:
        if not fp8:
            out[f"{name}.weight"] = weight.clone()
            return
        codes = model_lib.to_e4m3(weight, scale).to(torch.float8_e4m3fn)
        out[f"{name}.weight"] = codes.contiguous()
        out[f"{name}.weight_scale"] = scale.reshape(()).clone()
        out[f"{name}.input_scale"] = (peak / model_lib.E4M3_MAX).clone()

    def linear(prefix: str, name: str, module: model_lib.Linear) -> None:
        weight = module.weight.detach().cpu().float()
        scale = module.weight_scale().cpu()
        peak = module.input_peak.cpu()
        if weight.dim() == 2:
            one_linear(f"{prefix}.{name}", weight, scale, peak)
            return
        for expert in range(weight.shape[0]):
            one_linear(f"{prefix}.experts.{expert}.{name}", weight[expert],
                       scale[expert], peak[expert])

    plain("model.embed_tokens.weight", model.embed_tokens)
    for index, block in enumerate(model.blocks):
        prefix = f"model.layers.{index}"
        plain(f"{prefix}.input_layernorm.weight", block.input_layernorm.weight)
        plain(f"{prefix}.post_attention_layernorm.weight",
              block.post_attention_layernorm.weight)
        attention = f"{prefix}.self_attn"
        plain(f"{attention}.kv_a_layernorm.weight",
              block.self_attn.kv_a_layernorm.weight)
        for name in ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"):
            linear(attention, name, getattr(block.self_attn, name))
        mlps = [(f"{prefix}.mlp", block.mlp)]
        if not block.dense:
            plain(f"{prefix}.mlp.gate.weight", block.mlp.gate)
            mlps.append((f"{prefix}.mlp.shared_experts",
                         block.mlp.shared_experts))
        for mlp_prefix, mlp in mlps:
            for name in ("gate_proj", "up_proj", "down_proj"):
                linear(mlp_prefix, name, getattr(mlp, name))
    plain("model.norm.weight", model.norm.weight)
    plain("lm_head.weight", model.lm_head)
    return out


def config_json(c: model_lib.Config, begin: int, end: int, fp8: bool) -> dict:
    config = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "bos_token_id": begin,
        "eos_token_id": end,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": c.hidden,
        "initializer_range": 0.02,
        "intermediate_size": c.dense_inner,
        "kv_lora_rank": c.kv_lora_rank,
        "max_position_embeddings": c.max_positions,
        "model_type": "deepseek_v2",
        "moe_intermediate_size": c.expert_inner,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": c.experts,
        "n_shared_experts": c.shared_experts,
        "norm_topk_prob": False,
        "num_attention_heads": c.heads,
        "num_experts_per_tok": c.experts_per_token,
        "num_hidden_layers": c.layers,
        "num_key_value_heads": c.heads,
        "pretraining_tp": 1,
        "q_lora_rank": None,
        "qk_nope_head_dim": c.nope_dim,
        "qk_rope_head_dim": c.rope_dim,
        "rms_norm_eps": c.eps,
        "rope_scaling": {
            "beta_fast": int(c.yarn_beta_fast),
            "beta_slow": int(c.yarn_beta_slow),
            "factor": int(c.yarn_factor),
            "mscale": c.yarn_mscale,
            "mscale_all_dim": c.yarn_mscale_all_dim,
            "original_max_position_embeddings": c.yarn_original,
            "type": "yarn"},
        "rope_theta": int(c.rope_theta),
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "bfloat16" if fp8 else "float32",
        "use_cache": True,
        "v_head_dim": c.v_dim,
        "vocab_size": c.vocab_size}
    if fp8:
        config["quantization_config"] = {
            "activation_scheme": "static",
            "ignored_layers": ["lm_head"],
            "quant_method": "fp8"}
    return config


def write(model: model_lib.Model, directory: pathlib.Path, begin: int,
          end: int, fp8: bool = True) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    shards, used = [{}], 0
    for name, tensor in tensors(model, fp8).items():
        size = tensor.numel() * tensor.element_size()
        if fp8 and shards[-1] and used + size > SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    total, weight_map = 0, {}
    for index, shard in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        safetensors.torch.save_file(shard, directory / file,
                                    metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        total += sum(t.numel() * t.element_size() for t in shard.values())
    _write_json(directory / "model.safetensors.index.json", {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(weight_map.items()))})
    _write_json(directory / "config.json",
                config_json(model.config, begin, end, fp8))


def _write_json(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
