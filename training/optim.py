"""Make the optimizers (AdamW, or Muon with AdamW), choose the parameters with weight decay, and clip gradients."""

from collections import defaultdict
from collections.abc import Mapping
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

# How each parameter that Muon updates is rearranged into matrices [count inputs outputs]. Queries, keys and values are
# separate matrices, as Jordan et al. 2024 recommend; the heads of one projection stay together.
MATRIX_LAYOUTS: dict[type[nn.Module], dict[str, str]] = {
    Attention: {
        "W_QKV": "inputs qkv n_heads d_head -> qkv inputs (n_heads d_head)",
        "W_O": "n_heads d_head outputs -> 1 (n_heads d_head) outputs",
    },
    MLP: {"W_in": "inputs outputs -> 1 inputs outputs", "W_out": "inputs outputs -> 1 inputs outputs"},
}

# The tensors that each optimizer stores for a parameter.
_STATE_OF_MUON = {"momentum_buffer"}
_STATE_OF_ADAMW = {"step", "exp_avg", "exp_avg_sq"}


def make_optimizer(module: nn.Module, config: OptimConfig) -> Optimizer:
    """Return the optimizer that a configuration names, for all parameters of a module.

    Each group has an ``initial_lr``; a schedule sets ``lr`` to that times a factor between 0 and 1. A state that the
    optimizer loads must fit its parameters (`check_state`), and does not change its options: those of ``config`` apply.

    Args:
        module: the module, already on its device, and already sharded if that is wanted.
        config: its fields ``optimizer``, ``lr``, ``muon_lr``, ``muon_momentum``, ``beta1``, ``beta2``, ``weight_decay``
            and ``precision`` are used. With the precision "bf16", Muon's iteration runs in bfloat16 too.

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
    """Return the matrices of a module's blocks by their layout, an einops pattern to ``[count inputs outputs]``."""
    found: dict[str, list[nn.Parameter]] = defaultdict(list)
    for layer in module.modules():
        for kind, layouts in MATRIX_LAYOUTS.items():
            if isinstance(layer, kind):
                for name, layout in layouts.items():
                    found[layout].append(getattr(layer, name))
    return dict(found)


def decay_groups(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters with weight decay and those without, in the module's order, each parameter once.

    As in nanoGPT, matrices and embeddings decay; biases and the gains of layer norms do not. The name and the layer of
    a parameter decide, not its number of axes: ``b_QKV`` is a bias with several axes.
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
    """Return AdamW (Loshchilov & Hutter 2019) for a module's parameters, fused if PyTorch's fused kernel supports them.

    Args:
        module: the module.
        lr: learning rate.
        betas: decay rates for the running mean of the gradient and of the squared gradient.
        eps: added to the root of the mean square.
        weight_decay: each step subtracts this times ``lr`` of the parameters that decay, see `decay_groups`.
        without: parameters to leave out (default: none).
    """
    decayed, exempt = ([p for p in group if p not in (without or set())] for group in decay_groups(module))
    groups = [
        {"params": group, "weight_decay": decay} for group, decay in ((decayed, weight_decay), (exempt, 0.0)) if group
    ]
    # The fused kernel goes through memory in order, so its result is wrong if a parameter and its gradient have
    # different memory layouts. PyTorch provides it only for these devices.
    parameters = decayed + exempt
    fused = all(p.is_contiguous() and p.device.type in ("cpu", "cuda", "mps") for p in parameters)
    return AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


def check_state(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Check that a state has the groups, the entries and the shapes that an optimizer of `make_optimizer` needs.

    The fused kernel of AdamW trusts the shapes of its state, and would write outside of a tensor that is too small.

    Args:
        optimizer: the optimizer that will load the state.
        state_dict: the state, as ``state_dict`` of an optimizer returns it.

    Raises:
        ValueError: the state is damaged, or belongs to another optimizer or another model.
    """
    kind = type(optimizer).__name__
    groups, saved_groups = optimizer.param_groups, state_dict["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in some] for some in (groups, saved_groups))
    layouts, saved_layouts = ([group.get("layout") for group in some] for some in (groups, saved_groups))
    # The groups. Those of Muon have a layout.
    was = "Muon" if any(saved_layouts) else "AdamW"
    if was != kind:
        raise ValueError(
            f"the optimizer's state is of {was}, and this run uses {kind}: "
            f"continue with --optimizer {was.lower()}, or start a new run from the weights with --init-from"
        )
    if sizes != saved_sizes or layouts != saved_layouts:
        raise ValueError(
            f"the optimizer's state has groups of {saved_sizes} parameters, and the model needs {sizes}: "
            "it belongs to another model"
        )
    # The parameters.
    numbers = [number for group in saved_groups for number in group["params"]]
    parameters = [parameter for group in groups for parameter in group["params"]]
    if state_dict["state"].keys() - set(numbers):
        raise ValueError("the optimizer's state has entries that belong to no parameter: it is damaged")
    # The tensors of each parameter.
    expected = [_STATE_OF_MUON if "layout" in group else _STATE_OF_ADAMW for group in groups for _ in group["params"]]
    for number, parameter, names in zip(numbers, parameters, expected, strict=True):
        if (state := state_dict["state"].get(number)) is not None:
            _check_entry(number, state, parameter, names)


def _check_entry(number: object, state: Any, parameter: Tensor, names: set[str]) -> None:
    what = f"the optimizer's state of parameter {number}"
    if not isinstance(state, dict) or state.keys() != names:
        found = ", ".join(map(str, state)) if isinstance(state, dict) else f"a {type(state).__name__}"
        raise ValueError(f"{what} has {found or 'nothing'}, and needs {', '.join(sorted(names))}: it is damaged")
    for name, value in state.items():
        shape = torch.Size() if name == "step" else parameter.shape
        if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
            found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(
                f"{what} has {found} as {name}, which must be a floating-point tensor of shape {list(shape)}: it is "
                "damaged, or belongs to another model"
            )


def _fitting_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Check a state before it is loaded, and replace its options by those of this optimizer."""
    check_state(optimizer, state_dict)
    own_options = [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    return {
        **state_dict,
        "param_groups": [
            {"params": saved["params"], **own}
            for saved, own in zip(state_dict["param_groups"], own_options, strict=True)
        ],
    }


def clip_gradient_norm(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """Scale all gradients so that their common norm is at most ``limit`` (Pascanu et al. 2013).

    Args:
        parameters: the parameters whose gradients are scaled, in place.
        limit: the largest norm (None: the gradients are not scaled).

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
