"""Static activation scales: the largest inputs that each Linear sees."""

import torch

from . import model as model_lib


def _peak(x: torch.Tensor) -> torch.Tensor:
    return x.detach().float().abs().amax()


def _linear_hook(linear, inputs):
    linear.seen = torch.maximum(linear.seen, _peak(inputs[0]))


def _latent_hook(attention, norm_output):
    linear = attention.kv_b_proj
    linear.seen = torch.maximum(linear.seen, _peak(norm_output))


def _moe_hook(moe, x, quantise: bool):
    """Each expert's peaks over the tokens that are routed to it alone."""
    weights, _ = moe.route(x)
    chosen = weights > 0  # (batch, length, experts)
    inner = (torch.nn.functional.silu(moe.gate_proj(x, quantise))
             * moe.up_proj(x, quantise)).unflatten(-1, (chosen.shape[-1], -1))
    x_peak = x.float().abs().amax(-1, keepdim=True) * chosen
    inner_peak = inner.float().abs().amax(-1) * chosen
    for linear, peak in ((moe.gate_proj, x_peak), (moe.up_proj, x_peak),
                         (moe.down_proj, inner_peak)):
        linear.seen = torch.maximum(linear.seen, peak.amax((0, 1)))
    moe.tokens_seen = moe.tokens_seen + chosen.sum((0, 1))


@torch.no_grad()
def calibrate(model: model_lib.Model, batches, quantise: bool) -> list[int]:
    """Sets the input peaks; returns the fewest tokens of an expert by layer."""
    hooks = []
    for module in model.modules():
        if isinstance(module, model_lib.Linear):
            module.seen = torch.zeros_like(module.input_peak)
            if module.weight.dim() == 2:
                hooks.append(module.register_forward_pre_hook(_linear_hook))
        if isinstance(module, model_lib.Attention):
            hooks.append(module.kv_a_layernorm.register_forward_hook(
                lambda _, __, out, attention=module:
                _latent_hook(attention, out)))
        if isinstance(module, model_lib.Moe):
            module.tokens_seen = torch.zeros(
                module.config.experts, dtype=torch.long,
                device=module.gate.device)
            # Hooks do not fire on the Linears that the hook itself calls for
            # a stack, so nothing is counted twice.
            hooks.append(module.register_forward_pre_hook(
                lambda moe, inputs: _moe_hook(moe, *inputs)))
    for tokens in batches:
        model.hidden_states(tokens, quantise)
    for hook in hooks:
        hook.remove()

    fewest = []
    for module in model.modules():
        if isinstance(module, model_lib.Linear):
            assert (module.seen > 0).all(), "a Linear saw no input"
            module.input_peak.copy_(module.seen)
            del module.seen
        if isinstance(module, model_lib.Moe):
            fewest.append(int(module.tokens_seen.min()))
            assert fewest[-1] > 0, "an expert saw no calibration token"
            del module.tokens_seen
    return fewest
