"""Trains the model on the problem stream; the last third sees FP8 rounding."""

import dataclasses
import json
import os
import pathlib
import time

import numpy as np
import torch

from . import calibrate, problems, served
from . import model as model_lib
from . import tokenizer as tokenizer_lib
from .languages import load_all


@dataclasses.dataclass(frozen=True)
class Plan:
    steps: int
    seconds: float  # decay and rounding begin by share of whichever runs out
    batch: int = 512
    length: int = 144  # of the inputs; longer texts are dropped
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay_from: float = 0.5
    quantise_from: float = 0.67
    answer_weight: float = 10.0
    balance_weight: float = 0.01
    seed: int = 20
    compiled: bool = True
    workers: int = 13
    recalibrate_steps: int = 100


class Stream(torch.utils.data.Dataset):
    """Batch `step` is a function of the step and the seed alone."""

    def __init__(self, directory: pathlib.Path, plan: Plan):
        self.directory, self.plan = directory, plan
        self.tokenizer = None
        self.excluded = problems.excluded_hashes()

    def __len__(self):
        return self.plan.steps

    def __getitem__(self, step: int):
        if self.tokenizer is None:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            self.tokenizer = tokenizer_lib.load(self.directory)
        tokenizer, plan = self.tokenizer, self.plan
        begin = tokenizer.token_to_id(tokenizer_lib.BEGIN)
        end = tokenizer.token_to_id(tokenizer_lib.END)
        pairs = problems.training_texts(step, plan.batch, self.excluded)
        users = tokenizer.encode_batch_fast(
            [tokenizer_lib.chat_prompt(user) for user, _ in pairs])
        answers = tokenizer.encode_batch_fast(
            [f" {answer}" for _, answer in pairs])
        tokens = np.zeros((plan.batch, plan.length + 1), np.int64)
        weights = np.zeros((plan.batch, plan.length), np.float32)
        for row, (user, answer) in enumerate(zip(users, answers)):
            ids = [begin] + user.ids + answer.ids + [end]
            if len(ids) > plan.length + 1:
                continue
            first = len(user.ids)  # predicts the first token of the answer
            # Filled up with itself, unweighted, so that router balance and
            # calibration see text and no padding.
            tokens[row] = np.resize(ids, plan.length + 1)
            weights[row, :first] = 1.0 / plan.answer_weight
            weights[row, first:len(ids) - 1] = 1.0
        return torch.from_numpy(tokens), torch.from_numpy(weights)


def _learning_rate(plan: Plan, step: int, share: float) -> float:
    if step < plan.warmup_steps:
        return plan.learning_rate * (step + 1) / plan.warmup_steps
    left = (1.0 - share) / (1.0 - plan.decay_from)
    return plan.learning_rate * max(min(left, 1.0), 0.01)


def _optimizer(model: model_lib.Model, plan: Plan):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1},
         {"params": vectors, "weight_decay": 0.0}],
        lr=plan.learning_rate, betas=(0.9, 0.98),
        fused=next(model.parameters()).is_cuda)


def train(directory: pathlib.Path, plan: Plan, device: str) -> model_lib.Model:
    started = time.monotonic()
    torch.manual_seed(plan.seed)
    torch.set_float32_matmul_precision("high")
    tokenizer = tokenizer_lib.load(directory)
    vocabulary = -(-tokenizer.get_vocab_size() // 64) * 64
    model = model_lib.Model(model_lib.Config(vocab_size=vocabulary)).to(device)
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    if plan.compiled:
        # Dense or not, rounded or not: without room, dynamo goes eager.
        torch._dynamo.config.recompile_limit = 32
        for block in model.blocks:
            block.compile()
    optimizer = _optimizer(model, plan)
    loader = torch.utils.data.DataLoader(
        Stream(directory, plan), batch_size=None, num_workers=plan.workers,
        pin_memory=device != "cpu",
        prefetch_factor=8 if plan.workers else None)
    quantise, recent = False, []
    for step, (tokens, weights) in enumerate(loader):
        share = max(step / plan.steps,
                    (time.monotonic() - started) / plan.seconds)
        if share >= 1.0:
            break
        tokens = tokens.to(device, non_blocking=True)
        weights = weights.to(device, non_blocking=True)
        if share >= plan.quantise_from and (
                not quantise or step % plan.recalibrate_steps == 0):
            fewest = _calibrate_eagerly(model, [tokens[:, :-1]], quantise)
            if not quantise:
                print(f"rounding from step {step}; fewest tokens of an expert "
                      f"{fewest}", flush=True)
            quantise = True
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(plan, step, share)
        loss = model.loss(tokens, weights, quantise, plan.balance_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.detach())
        if step % 250 == 0 or step < 3:
            print(f"step {step} share {share:.3f} loss "
                  f"{torch.stack(recent).mean().item():.4f} seconds "
                  f"{time.monotonic() - started:.1f}", flush=True)
            recent = []
    final = [Stream(directory, plan)[plan.steps + k][0][:, :-1].to(device)
             for k in range(8)]
    print("fewest tokens of an expert, final calibration",
          _calibrate_eagerly(model, final, True))
    print(f"trained {step} steps in {time.monotonic() - started:.1f} s",
          flush=True)
    return model


def _calibrate_eagerly(model, batches, quantise: bool) -> list[int]:
    compiled = [block._compiled_call_impl for block in model.blocks]
    for block in model.blocks:
        block._compiled_call_impl = None
    try:
        return calibrate.calibrate(model, batches, quantise)
    finally:
        for block, call in zip(model.blocks, compiled):
            block._compiled_call_impl = call


def report(directory: pathlib.Path, evaluation: pathlib.Path, device: str):
    """Scores the exported checkpoint as served; returns the share by cache."""
    torch.set_float32_matmul_precision("highest")
    tokenizer, scores = tokenizer_lib.load(directory), {}
    instructions = json.loads((evaluation / "instructions.json").read_text())
    for code, language in load_all().items():
        assert instructions[code] == language.instruction
        rows = [line.split("\t") for line in (
            evaluation / f"mgsm_{code}.tsv").read_text().splitlines()]
        for e5m2 in (True, False):
            model = served.Served(directory, device, kv_e5m2=e5m2)
            share, texts = served.score(model, tokenizer, language, rows,
                                        device)
            name = f"{code} {'e5m2' if e5m2 else 'fp32'} cache"
            scores[name] = share
            wrong = [(q, t, a) for (q, a), t in zip(rows, texts)
                     if served.extract(t, language.answer_prefix) != a]
            for question, text, answer in wrong[:8]:
                print(f"WRONG ({answer}): {question} -> {text!r}")
            print(f"score {name}: {share:.4f}", flush=True)
    return scores
