"""AdamW with decay on matrices alone, and the limit on the gradient's norm."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from ..components.layer_norm import LayerNorm


def decay_groups(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that weight decay is for, and those that it is not for, each once, in the module's order.

    As in nanoGPT, matrices decay, embeddings included; biases and the gains of layer norms do not. What a parameter is
    goes by its name and its layer, since ``b_QKV`` has several axes and is a bias all the same.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                is_bias_or_gain = isinstance(layer, LayerNorm) or name == "b" or name.startswith("b_")
                (exempt if is_bias_or_gain else decayed).append(parameter)
    return decayed, exempt


def adamw(module: nn.Module, *, lr: float, betas: tuple[float, float], eps: float = 1e-8, weight_decay: float) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019) on all of a module's parameters, as one fused kernel where PyTorch has it.

    Args:
        lr: learning rate.
        betas: decay rates of the mean and of the mean square of the gradient.
        eps: added to the root of the mean square.
        weight_decay: share of a decayed parameter that is taken off at each step, times ``lr``; see `decay_groups`.
    """
    decayed, exempt = decay_groups(module)
    groups = [
        {"params": group, "weight_decay": decay} for group, decay in ((decayed, weight_decay), (exempt, 0.0)) if group
    ]
    # The fused kernel walks memory in order, and gives another result where a parameter and its gradient are laid out
    # differently; PyTorch takes it for these devices only.
    parameters = decayed + exempt
    fused = all(p.is_contiguous() and p.device.type in ("cpu", "cuda", "mps") for p in parameters)
    return AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


def clip_gradient_norm(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """Scale all gradients so that their common norm is at most ``limit`` (Pascanu et al. 2013); None leaves them.

    Returns:
        The norm before; inf or nan where a gradient is not finite, and then nothing is scaled.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):  # parameters that are sharded among processes
        norm = norm.full_tensor()
    if limit is not None and bool(norm.isfinite()):
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
