"""Makes the numerics goldens from other implementations of the model.

    python3 tests/goldens/make_goldens.py            (from the repository root)

Needs torch, transformers 5.17 or later, tokenizers and safetensors; no GPU.

Three tiny random checkpoints, each with the logits that transformers'
DeepseekV2ForCausalLM gives in fp32 with eager attention:
  q_lora       the query projection in two parts, through q_lora_rank
  group_limited  experts chosen inside the best groups, scaled by 16
  yarn         V2-Lite's rope scaling with mscale, over 150 positions
Weights are random bf16 numbers of wide spread, so that logits vary by several
units and a wrong order of heads, pairs or experts shows.

And the log-probabilities of one evaluation text under the embedded model, as
deploy/models/recipe/served.py computes them from the FP8 checkpoint, with an
fp32 and with an e5m2 cache.
"""

import pathlib
import sys

import safetensors.torch
import torch
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
MODELS = HERE.parent.parent / "deploy" / "models"

COMMON = dict(
    vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=32,
    qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
    n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=2,
    moe_intermediate_size=32, first_k_dense_replace=1, norm_topk_prob=False,
    routed_scaling_factor=1.0, topk_method="greedy", n_group=1, topk_group=1,
    scoring_func="softmax", moe_layer_freq=1, q_lora_rank=None,
    max_position_embeddings=4096, rms_norm_eps=1e-6, attention_bias=False,
    tie_word_embeddings=False, bos_token_id=0, eos_token_id=1)

PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

CASES = {
    "q_lora": dict(seed=1, positions=96, config=dict(
        q_lora_rank=48, rope_parameters=PLAIN_ROPE)),
    "group_limited": dict(seed=2, positions=96, config=dict(
        topk_method="group_limited_greedy", n_group=4, topk_group=2,
        num_experts_per_tok=3, routed_scaling_factor=16.0,
        rope_parameters=PLAIN_ROPE)),
    # An original length of 128 positions puts the ramp inside the 8 pairs and
    # some of the 150 positions beyond it.
    "yarn": dict(seed=3, positions=150, config=dict(
        max_position_embeddings=5120,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0,
            "original_max_position_embeddings": 128, "beta_fast": 32.0,
            "beta_slow": 1.0, "mscale": 0.707, "mscale_all_dim": 0.707})),
}


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1.0 + 0.2 * noise
        elif name.endswith("embed_tokens.weight"):
            value = noise
        else:
            value = noise * 1.5 * parameter.shape[-1] ** -0.5
        parameter.data.copy_(value.bfloat16().float())


@torch.no_grad()
def make_random(name: str, seed: int, positions: int, config: dict) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = DeepseekV2ForCausalLM._from_config(
        DeepseekV2Config(**{**COMMON, **config}),
        attn_implementation="eager", dtype=torch.float32).eval()
    randomise(model, generator)
    ids = torch.randint(2, COMMON["vocab_size"], (1, positions),
                        generator=generator)
    directory = HERE / name
    model.to(torch.bfloat16).save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)

    # What was saved, read again, so that the golden is of the files.
    model = DeepseekV2ForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager").eval()
    logits = model(ids).logits[0]
    top = logits.topk(2).values
    print(f"{name}: logits std {logits.std():.3f}, smallest lead of an argmax "
          f"{(top[:, 0] - top[:, 1]).min():.5f}, attention scale "
          f"{model.model.layers[0].self_attn.scaling:.7f}")
    safetensors.torch.save_file(
        {"input_ids": ids[0].int(), "logits": logits.float().contiguous()},
        directory / "golden.safetensors")
    for file in directory.iterdir():
        file.chmod(0o644)


def make_embedded() -> None:
    sys.path.insert(0, str(MODELS))
    from recipe import problems, served, tokenizer
    from recipe.languages import load_all

    directory = MODELS / "invar-gsm-20m"
    tokens = tokenizer.load(directory)
    language = load_all()["en"]
    problem = max(problems.evaluation_set(language),
                  key=lambda p: len(p.question) + len(language.response(p)))
    text = (f"{tokenizer.chat_prompt(language.prompt(problem))} "
            f"{language.response(problem)}")
    ids = torch.tensor([tokens.token_to_id(tokenizer.BEGIN)]
                       + tokens.encode(text).ids)
    out = {"input_ids": ids.int()}
    for name in ("fp32", "e5m2"):
        model = served.Served(directory, kv_e5m2=name == "e5m2")
        # The served vocabulary includes the padding rows.
        logprobs = model.logits(ids[None])[0].log_softmax(-1)
        out[f"logprobs_{name}_kv"] = logprobs[:-1].gather(
            1, ids[1:, None])[:, 0].contiguous()
    print(f"embedded: {len(ids)} tokens, largest difference between caches "
          f"{(out['logprobs_fp32_kv'] - out['logprobs_e5m2_kv']).abs().max()}")
    (HERE / "embedded").mkdir(exist_ok=True)
    golden = HERE / "embedded" / "golden.safetensors"
    safetensors.torch.save_file(out, golden)
    golden.chmod(0o644)


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, case in CASES.items():
        make_random(name, **case)
    make_embedded()


if __name__ == "__main__":
    main()
