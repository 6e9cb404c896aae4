"""The optimizers (AdamW, and Muon with AdamW), which parameters weight decay applies to, and gradient clipping."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from ..components.attention import Attention
from ..components.layer_norm import LayerNorm
from ..components.mlp import MLP
from .muon import Muon
from .presets import OptimConfig

# How the parameters of a block that Muon updates turn into matrices [count inputs outputs]. Queries, keys and values
# are matrices of their own, as Jordan et al. 2024 recommend; the heads of one projection stay together.
MATRIX_LAYOUTS: dict[type[nn.Module], dict[str, str]] = {
    Attention: {
        "W_QKV": "inputs qkv n_heads d_head -> qkv inputs (n_heads d_head)",
        "W_O": "n_heads d_head outputs -> 1 (n_heads d_head) outputs",
    },
    MLP: {"W_in": "inputs outputs -> 1 inputs outputs", "W_out": "inputs outputs -> 1 inputs outputs"},
}


_STATE_OF_MUON = {"momentum_buffer"}
_STATE_OF_ADAMW = {"step", "exp_avg", "exp_avg_sq"}


def make_optimizer(module: nn.Module, config: OptimConfig) -> Optimizer:
    """Return the optimizer that a configuration names, on all of a module's parameters.

    Each of its groups has an ``initial_lr``; a schedule sets ``lr`` to that times a factor between 0 and 1. A state
    that it loads must fit its parameters, and changes no option: those of ``config`` apply.

    Args:
        module: the module, on its device, and sharded already if it will be.
        config: ``optimizer``, ``lr``, ``muon_lr``, ``muon_momentum``, ``beta1``, ``beta2`` and ``weight_decay`` are
            used; ``precision`` must be settled: under "bf16", Muon's iteration runs in bfloat16 too.

    Example:
        >>> import torch
        >>> from gptladder.training.presets import OptimConfig
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = make_optimizer(layer, OptimConfig(lr=0.1, max_steps=1))
        >>> [group["initial_lr"] for group in optimizer.param_groups]
        [0.1]
    """
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adamw":
        optimizer: Optimizer = adamw(module, lr=config.lr, betas=betas, weight_decay=config.weight_decay)
    else:
        matrices = block_matrices(module)
        options = {
            "lr": config.muon_lr,
            "weight_decay": config.weight_decay,
            "momentum": config.muon_momentum,
            "bf16": config.precision == "bf16",
        }
        optimizer = Muon(
            [{"params": found, "layout": layout, **options} for layout, found in matrices.items()],
            adamw(
                module,
                lr=config.lr,
                betas=betas,
                weight_decay=config.weight_decay,
                without={parameter for found in matrices.values() for parameter in found},
            ),
        )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    optimizer.register_load_state_dict_pre_hook(_fitting_state)
    return optimizer


def block_matrices(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the matrices of a module's blocks, by their layout: einops patterns to ``[count inputs outputs]``."""
    found: dict[str, list[nn.Parameter]] = defaultdict(list)
    for layer in module.modules():
        for kind, layouts in MATRIX_LAYOUTS.items():
            if isinstance(layer, kind):
                for name, layout in layouts.items():
                    found[layout].append(getattr(layer, name))
    return dict(found)


def decay_groups(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters that weight decay applies to, and the others, each once, in the module's order.

    As in nanoGPT, matrices decay, embeddings included; biases and the gains of layer norms do not. A parameter's name
    and layer tell what it is, not its number of axes: ``b_QKV`` has several and is a bias.
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


def adamw(
    module: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float = 1e-8,
    weight_decay: float,
    without: set[nn.Parameter] | None = None,
) -> AdamW:
    """Return AdamW (Loshchilov & Hutter 2019) on a module's parameters, fused where PyTorch's fused kernel is right.

    Args:
        module: the module.
        lr: learning rate.
        betas: decay rates of the mean and of the mean square of the gradient.
        eps: added to the root of the mean square.
        weight_decay: share of a decayed parameter that each step removes, times ``lr``; see `decay_groups`.
        without: parameters to leave out (default: none).
    """
    decayed, exempt = ([p for p in group if p not in (without or set())] for group in decay_groups(module))
    groups = [
        {"params": group, "weight_decay": decay} for group, decay in ((decayed, weight_decay), (exempt, 0.0)) if group
    ]
    # The fused kernel walks memory in order, and gives another result if a parameter and its gradient are laid out
    # differently. PyTorch has it for these devices only.
    parameters = decayed + exempt
    fused = all(p.is_contiguous() and p.device.type in ("cpu", "cuda", "mps") for p in parameters)
    return AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


def _fitting_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Check a state before it is loaded, and put this optimizer's options in place of the saved ones.

    The fused kernel of AdamW trusts the shapes of its state, and would write outside of a tensor that is too small.
    """
    kind = type(optimizer).__name__
    groups, saved_groups = optimizer.param_groups, state_dict["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in some] for some in (groups, saved_groups))
    layouts, saved_layouts = ([group.get("layout") for group in some] for some in (groups, saved_groups))
    if layouts != saved_layouts:
        was = "Muon" if any(saved_layouts) else "AdamW"
        raise ValueError(
            f"the optimizer's state is of {was}, and this run uses {kind}: "
            f"continue with --optimizer {was.lower()}, or start a new run from the weights with --init-from"
        )
    if sizes != saved_sizes:
        raise ValueError(
            f"the optimizer's state has groups of {saved_sizes} parameters, and the model needs {sizes}: "
            "it belongs to another model"
        )
    numbers = [number for group in saved_groups for number in group["params"]]
    parameters = [parameter for group in groups for parameter in group["params"]]
    if state_dict["state"].keys() - set(numbers):
        raise ValueError("the optimizer's state has entries that belong to no parameter: it is damaged")
    expected = [_STATE_OF_MUON if "layout" in group else _STATE_OF_ADAMW for group in groups for _ in group["params"]]
    for number, parameter, names in zip(numbers, parameters, expected, strict=True):
        state = state_dict["state"].get(number)
        if state is not None and state.keys() != names:
            raise ValueError(
                f"the optimizer's state of parameter {number} has {', '.join(map(str, state)) or 'nothing'}, "
                f"where {kind} needs {', '.join(sorted(names))}: it is damaged"
            )
        for name, value in (state or {}).items():
            shape = torch.Size() if name == "step" else parameter.shape
            if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
                found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(
                    f"the optimizer's state has {found} as {name} of parameter {number}, which needs a floating-point "
                    f"tensor of shape {list(shape)}: it is damaged, or belongs to another model"
                )
    own_options = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    return {
        **state_dict,
        "param_groups": [
            {"params": saved["params"], **own} for saved, own in zip(saved_groups, own_options, strict=True)
        ],
    }


def clip_gradient_norm(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """Scale all gradients so that their common norm is at most ``limit`` (Pascanu et al. 2013); None does not.

    Returns:
        The norm before scaling. It is inf or nan if a gradient is not finite, and then nothing is scaled.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):  # parameters that are sharded among processes
        norm = norm.full_tensor()
    if limit is not None and bool(norm.isfinite()):
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
