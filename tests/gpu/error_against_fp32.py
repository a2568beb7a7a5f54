"""Error of the GPU's logits against fp32, beside that of transformers in bf16.

    python3 tests/gpu/error_against_fp32.py FOLDER [--engine build/bin/forced_logits]

Needs torch, transformers 5.17 or later, numpy, safetensors and a Hopper GPU.
FOLDER holds a bf16 checkpoint (gpu_bench engine FOLDER bf16 makes a random one
of V2-Lite's shape; it takes 31 GB).

The reference computes one text in fp32, without TF32, layer by layer, so that
it fits. Its expert choices are forced upon both others, since a near tie that
flips is no error of arithmetic: transformers in bf16 (sdpa attention, its
default way with experts), and Invar's deterministic path, for each dtype of
the cache. The line that must hold is bf16's: a cache of 8 bits is a choice of
the config, not of arithmetic.

noise: the root mean square of transformers' error, over all logits of all
positions. Exit code: 1 if a limit does not hold.
"""

import argparse
import copy
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy
import torch
from safetensors import safe_open
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as deepseek

MAX_ERROR_RATIO = 1.25
MIN_MARGIN_IN_NOISE = 4.0
POSITIONS_AT_ONCE = 256  # of logits


class Checkpoint:
    """Tensors by name, on the device."""

    def __init__(self, folder: pathlib.Path, device: str):
        index = folder / "model.safetensors.index.json"
        if index.exists():
            files = json.loads(index.read_text())["weight_map"]
        else:
            with safe_open(folder / "model.safetensors", "pt") as shard:
                files = dict.fromkeys(shard.keys(), "model.safetensors")
        opened = {file: safe_open(folder / file, "pt", device=device)
                  for file in set(files.values())}
        self.shards = {name: opened[file] for name, file in files.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.shards[name].get_tensor(name)

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        """As transformers names and stacks them."""
        prefix = f"model.layers.{index}."
        names = [name for name in self.shards if name.startswith(prefix)]
        state = {name.removeprefix(prefix): self[name] for name in names
                 if ".mlp.experts." not in name}
        count = sum(".mlp.experts." in name and "gate_proj" in name
                    for name in names)
        if count:
            def stack(projection):
                return torch.stack(
                    [self[f"{prefix}mlp.experts.{e}.{projection}.weight"]
                     for e in range(count)])
            state["mlp.experts.gate_up_proj"] = torch.cat(
                [stack("gate_proj"), stack("up_proj")], dim=1)
            state["mlp.experts.down_proj"] = stack("down_proj")
        return state


def read_config(folder: pathlib.Path) -> DeepseekV2Config:
    return DeepseekV2Config.from_pretrained(folder)


class Forward:
    """transformers' modules, a layer at a time."""

    def __init__(self, config, dtype, attention, experts, device):
        self.config = copy.deepcopy(config)
        self.config._attn_implementation = attention
        self.config._experts_implementation = experts
        self.dtype = dtype
        self.rotary = deepseek.DeepseekV2RotaryEmbedding(
            self.config).to(device)
        self.hidden = None
        self.mask = None

    def embed(self, table, ids):
        self.hidden = torch.nn.functional.embedding(ids, table)[None].to(
            self.dtype)
        self.positions = torch.arange(len(ids), device=ids.device)[None]
        self.angles = self.rotary(self.hidden, position_ids=self.positions)
        if self.config._attn_implementation == "eager":
            self.mask = torch.full(
                (1, 1, len(ids), len(ids)), torch.finfo(self.dtype).min,
                dtype=self.dtype, device=ids.device).triu(1)

    def run_layer(self, index, state, forced=None):
        """Returns the experts chosen, best first; with `forced`, those."""
        with torch.device("meta"):
            layer = deepseek.DeepseekV2DecoderLayer(self.config, index)
        layer.load_state_dict(
            {name: value.to(self.dtype) for name, value in state.items()},
            assign=True)
        layer.eval()
        chosen = []
        if hasattr(layer.mlp, "gate"):
            gate = layer.mlp.gate

            def route(hidden):
                hidden = hidden.view(-1, gate.hidden_dim)
                logits = torch.nn.functional.linear(hidden.float(),
                                                    gate.weight.float())
                scores = logits.softmax(-1, dtype=torch.float32)
                ids = (scores.topk(gate.top_k).indices
                       if forced is None else forced)
                chosen.append(ids)
                return (logits,
                        scores.gather(1, ids) * gate.routed_scaling_factor,
                        ids)
            gate.forward = route
        self.hidden = layer(
            self.hidden, attention_mask=self.mask, position_ids=self.positions,
            position_embeddings=self.angles)
        return chosen[0] if chosen else None

    def finish(self, norm, eps):
        module = deepseek.DeepseekV2RMSNorm(norm.shape[0], eps)
        module.weight = torch.nn.Parameter(norm.to(self.dtype))
        self.hidden = module(self.hidden)[0]

    def logits(self, head, first, last):
        return torch.nn.functional.linear(self.hidden[first:last],
                                          head.to(self.dtype)).float()


def default_experts(config) -> str:
    with torch.device("meta"):
        small = copy.deepcopy(config)
        small.num_hidden_layers = 1
        return DeepseekV2ForCausalLM(small).config._experts_implementation


def run_references(folder, ids, device):
    """The fp32 reference and transformers in bf16, side by side."""
    config = read_config(folder)
    weights = Checkpoint(folder, device)
    experts = default_experts(config)
    exact = Forward(config, torch.float32, "eager", "eager", device)
    bf16 = Forward(config, torch.bfloat16, "sdpa", experts, device)
    table = weights["model.embed_tokens.weight"]
    for forward in (exact, bf16):
        forward.embed(table, ids)
    choices = []
    for index in range(config.num_hidden_layers):
        state = weights.layer(index)
        chosen = exact.run_layer(index, state)
        bf16.run_layer(index, state, forced=chosen)
        if chosen is not None:
            choices.append(chosen.int().cpu())
    for forward in (exact, bf16):
        forward.finish(weights["model.norm.weight"], config.rms_norm_eps)
    head = weights["lm_head.weight"]
    print(f"references: {config.num_hidden_layers} layers, experts by "
          f"{experts}, attention scale "
          f"{deepseek.yarn_apply_mscale(config.rope_parameters, config.qk_head_dim ** -0.5):.7f}")
    return exact, bf16, head, torch.stack(choices).numpy()


def run_engine(engine, folder, kv, ids, choices, scratch):
    torch.cuda.empty_cache()
    ids.cpu().numpy().astype(numpy.int32).tofile(scratch / "ids")
    choices.astype(numpy.int32).tofile(scratch / "experts")
    out = scratch / f"logits_{kv}"
    subprocess.run([engine, folder, kv, scratch / "ids", scratch / "experts",
                    out], check=True)
    return numpy.memmap(out, numpy.float32, "r").reshape(len(ids), -1)


class Error:
    """What one path's logits are, beside the reference's."""

    def __init__(self):
        self.squares, self.count, self.largest = 0.0, 0, 0.0
        self.tops = []

    def add(self, logits, reference):
        error = logits - reference
        self.squares += error.double().pow(2).sum().item()
        self.count += error.numel()
        self.largest = max(self.largest, error.abs().max().item())
        self.tops.append(logits.argmax(-1))

    @property
    def rms(self):
        return (self.squares / self.count) ** 0.5


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--engine", default="build/bin/forced_logits")
    parser.add_argument("--kv", default="bf16,e4m3,e5m2")
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--scratch", default="/dev/shm", help="room for 1.7 GB a dtype")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    start = time.monotonic()
    generator = torch.Generator().manual_seed(1)
    vocabulary = read_config(options.folder).vocab_size
    ids = torch.randint(0, vocabulary, (options.positions,),
                        generator=generator).to(options.device)
    exact, bf16, head, choices = run_references(options.folder, ids,
                                                options.device)
    if options.device == "cuda":
        print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print(f"references took {time.monotonic() - start:.0f} s", flush=True)
    errors = {"transformers bf16": Error(),
              "transformers bf16, head in fp32": Error()}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        engines = {}
        for kv in filter(None, options.kv.split(",")):
            engines[f"invar, {kv} cache"] = run_engine(
                options.engine, options.folder, kv, ids, choices,
                pathlib.Path(scratch))
        errors |= {name: Error() for name in engines}
        margins, spread, tops = [], 0.0, []
        for first in range(0, options.positions, POSITIONS_AT_ONCE):
            last = min(first + POSITIONS_AT_ONCE, options.positions)
            reference = exact.logits(head, first, last)
            best = reference.topk(2)
            margins.append(best.values[:, 0] - best.values[:, 1])
            tops.append(best.indices[:, 0])
            spread += reference.double().pow(2).mean(1).sum().item()
            errors["transformers bf16"].add(
                bf16.logits(head, first, last), reference)
            errors["transformers bf16, head in fp32"].add(
                torch.nn.functional.linear(bf16.hidden[first:last].float(),
                                           head.float()), reference)
            for name, logits in engines.items():
                errors[name].add(torch.tensor(logits[first:last]).to(
                    options.device), reference)
    noise = errors["transformers bf16"].rms
    margins, tops = torch.cat(margins), torch.cat(tops)
    clear = margins > MIN_MARGIN_IN_NOISE * noise
    print(f"{options.positions} positions; rms of the logits "
          f"{(spread / options.positions) ** 0.5:.4f}, median margin "
          f"{margins.median().item():.4f}, noise {noise:.5f}; "
          f"{int(clear.sum())} positions with a margin above "
          f"{MIN_MARGIN_IN_NOISE:g} noise")
    passed = True
    for name, error in errors.items():
        other = torch.cat(error.tops) != tops
        flips = int((other & clear).sum())
        ratio = error.rms / noise
        print(f"{name:34} rms error {error.rms:.6f} ({ratio:.3f} of "
              f"transformers bf16), largest {error.largest:.4f}; another top "
              f"token at {int(other.sum())}, of clear ones {flips}")
        if name == "invar, bf16 cache":
            passed &= ratio <= MAX_ERROR_RATIO and flips == 0
    print("holds" if passed else "DOES NOT HOLD")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
