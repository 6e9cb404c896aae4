"""What changes when a part of the model is replaced: activation patching and ablation."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..assembly.model import GPT2
from ..components.taps import act_name
from ..sampling.transforms.base import whole
from .labelled import Labelled
from .observing import observing
from .prompt import Text, Texts, read_prompt, read_prompts

Metric = Callable[[Tensor], Tensor | float]
"""Logits [batch seq d_vocab] to one number for each row, [batch], or to one number, as TransformerLens's metrics."""

Site = Literal["resid_pre", "resid_mid", "attn_out", "mlp_out", "q", "k", "v", "z"]
"""What is patched: the stream or a layer's output at one position, or one head's vectors."""

_OF_HEADS = ("q", "k", "v", "z")


@observing
def activation_patching(
    model: GPT2,
    clean: Text,
    corrupted: Text,
    metric: Metric,
    *,
    site: Site = "z",
    by_position: bool = True,
    tokenizer: Any = None,
    batch: int = 16,
) -> Labelled:
    """Return the metric of the corrupted prompt when one activation at a time is taken from the clean prompt.

    A large change shows where the information is that the corruption has taken away (Meng et al. 2022).
    TransformerLens: ``patching.get_act_patch_resid_pre``, ``…_attn_out``, ``…_mlp_out``,
    ``…_attn_head_out_by_pos`` (site ``z``), ``…_attn_head_q_by_pos``, …, and ``…_all_pos`` without ``by_position``.

    Args:
        model: in any mode; dropout is off.
        clean: a prompt that the model answers well.
        corrupted: one of as many tokens, in which something that matters is changed.
        metric: logits [batch seq d_vocab] to one number for each row, [batch]. A metric that returns a single number is
            called for each row by itself.
        site: which activation is patched.
        by_position: patch one position at a time; False patches all positions of a head at once.
        tokenizer: reads the prompts and gives the labels; see `read_prompt`.
        batch: patched prompts that are computed at a time.

    Returns:
        The metric, with the axes ``layer``, for heads ``head``, and by position ``position``.

    Raises:
        ValueError: the prompts have different numbers of tokens; all positions of a whole layer are to be patched; an
            unknown site; a metric that returns something else.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=10, n_ctx=8)).eval()
        >>> answer = lambda logits: logits[:, -1, 5]
        >>> activation_patching(model, [3, 1, 4], [3, 2, 4], answer).values.shape  # layer, head, position
        torch.Size([2, 2, 3])
    """
    if site not in get_args(Site):
        raise ValueError(f"site is {site!r}; it can be {', '.join(map(repr, get_args(Site)))}")
    whole("batch", batch, least=1)
    # Read the prompts, and keep the activations of the clean one.
    good, bad = read_prompt(model, clean, tokenizer), read_prompt(model, corrupted, tokenizer)
    seq = good.tokens.shape[1]
    if bad.tokens.shape[1] != seq:
        raise ValueError(
            f"the clean prompt has {seq} tokens and the corrupted one {bad.tokens.shape[1]}; patching needs as many: "
            f"clean {good.labels}, corrupted {bad.labels}"
        )
    of_heads = site in _OF_HEADS
    if not (of_heads or by_position):
        raise ValueError(f"by_position=False is for one head's vectors ({', '.join(_OF_HEADS)}), not for {site}")
    names = [act_name(site, layer) for layer in range(model.config.n_layers)]
    _, cache = model.run_with_cache(good.tokens, names_filter=names)

    # Patch one place at a time, several of them in one call: row i of the batch is patched at the i-th position.
    heads = range(model.config.n_heads) if of_heads else range(1)
    positions: Sequence[Any] = range(seq) if by_position else [slice(None)]
    found: list[Tensor] = []
    for name in names:
        for head in heads:
            for first in range(0, len(positions), batch):
                some = positions[first : first + batch]
                patch = _patch_from(cache[name][0], some, head if of_heads else None)
                logits = model.run_with_hooks(bad.tokens.expand(len(some), -1), fwd_hooks=[(name, patch)])
                found.append(_of_each_row(metric, logits))

    # Name the axes.
    axes: dict[str, Sequence[str]] = {"layer": [str(layer) for layer in range(len(names))]}
    if of_heads:
        axes["head"] = [str(head) for head in heads]
    if by_position:
        axes["position"] = good.positions
    shape = [len(labels) for labels in axes.values()]
    return Labelled(torch.cat(found).reshape(shape), axes, title=f"metric with {site} from the clean prompt")


def _of_each_row(metric: Metric, logits: Tensor) -> Tensor:
    """Return the metric of each row, [batch]. A metric of all rows together would mix the patches."""
    found = _as_tensor(metric(logits))
    if found.dim() == 0:
        found = torch.stack([_as_tensor(metric(row[None])) for row in logits])
    if found.shape != logits.shape[:1]:
        raise ValueError(
            f"the metric has the shape {list(found.shape)} for {len(logits)} rows of logits; it must be one number for "
            "each row, such as logits[:, -1, 5]"
        )
    return found


def _as_tensor(number: Any) -> Tensor:
    return number if isinstance(number, Tensor) else torch.tensor(number, dtype=torch.float64)


def _patch_from(source: Tensor, positions: Sequence[Any], head: int | None) -> Callable[..., Tensor]:
    """Return a hook that copies ``source`` into row i of an activation, at the i-th position.

    Args:
        source: the activation to copy from, [seq …].
        positions: positions, or slices of them.
        head: the head to copy (None: the activation has no heads).
    """

    def patch(activation: Tensor, *, hook: object) -> Tensor:
        for row, position in enumerate(positions):
            place = (position,) if head is None else (position, head)
            activation[(row, *place)] = source[place]
        return activation

    return patch


@observing
def ablation(
    model: GPT2, tokens: Texts, loss: Metric, *, kind: Literal["zero", "mean"] = "mean", tokenizer: Any = None
) -> Labelled:
    """Return by how much a loss rises without each head.

    Zero ablation replaces a head's ``z`` by 0. Mean ablation replaces it by its mean over the prompts at each position,
    so that what the head adds for every prompt stays, and what it adds for this prompt alone is removed.

    Args:
        model: in any mode; dropout is off.
        tokens: one prompt or several of as many tokens, as text or tokens [batch seq]; mean ablation needs several.
        loss: logits [batch seq d_vocab] to one number.
        kind: what takes the place of the head's output.
        tokenizer: reads text; see `read_prompt`.

    Returns:
        The rise, with the axes ``layer`` and ``head``.

    Raises:
        ValueError: mean ablation of a single prompt, which would change nothing; an unknown kind; a loss of more than
            one number.

    Example:
        >>> import torch
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=10, n_ctx=8)).eval()
        >>> tokens = torch.tensor([[3, 1, 4], [2, 7, 1]])
        >>> ablation(model, tokens, lambda logits: -logits[:, -1, 5].mean(), kind="zero").values.shape
        torch.Size([2, 2])
    """
    if kind not in ("zero", "mean"):
        raise ValueError(f"kind is {kind!r}; it can be 'zero' or 'mean'")
    tokens = read_prompts(model, tokens, tokenizer)
    if kind == "mean" and len(tokens) == 1:
        raise ValueError("mean ablation takes the mean over prompts, and there is one: give several, or kind='zero'")
    config = model.config
    plain = _as_tensor(loss(model(tokens)))
    if plain.numel() != 1:
        raise ValueError(f"the loss has the shape {list(plain.shape)}; it must be one number: take its mean")
    rise = torch.empty(config.n_layers, config.n_heads, dtype=plain.dtype)
    for layer in range(config.n_layers):
        for head in range(config.n_heads):

            def ablate(z: Tensor, *, hook: object, head: int = head) -> Tensor:
                z[:, :, head] = 0 if kind == "zero" else z[:, :, head].mean(0)
                return z

            rise[layer, head] = loss(model.run_with_hooks(tokens, fwd_hooks=[(act_name("z", layer), ablate)])) - plain
    labels = {"layer": [str(i) for i in range(config.n_layers)], "head": [str(i) for i in range(config.n_heads)]}
    return Labelled(rise, labels, title=f"rise of the loss by {kind} ablation")
