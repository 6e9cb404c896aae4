"""The residual stream, read as logits: the logit lens, and how much each part of the model adds to an answer."""

from typing import Any

import torch
from einops import einsum
from torch import Tensor

from ..assembly.model import GPT2
from ..components.caching import ActivationCache
from .labelled import Labelled
from .observing import observing
from .prompt import Text, as_tokenizer, one_token, read_prompt, token_label


def stages(model: GPT2) -> dict[str, str]:
    """Return the places of the residual stream, from the embeddings to the last block: label -> activation's name."""
    found = {"embed": "blocks.0.hook_resid_pre"}
    for layer in range(model.config.n_layers):
        found[f"{layer} attn"] = f"blocks.{layer}.hook_resid_mid"
        found[f"{layer} mlp"] = f"blocks.{layer}.hook_resid_post"
    return found


@observing
def logit_lens(model: GPT2, text: Text, *, tokenizer: Any = None) -> Labelled:
    """Return the logits that the model would give if it stopped after each layer.

    The residual stream after each attention and each MLP goes through the final layer norm and the unembedding
    (nostalgebraist 2020). TransformerLens: ``cache.accumulated_resid(incl_mid=True, apply_ln=True)`` and
    ``model.unembed``.

    Args:
        model: in any mode; dropout is off.
        text: the prompt, as text or token ids.
        tokenizer: reads the text and gives the labels; see `read_prompt`.

    Returns:
        Logits with the axes ``stage``, ``position`` and ``token``.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=10, n_ctx=8)).eval()
        >>> list(logit_lens(model, [3, 1, 4]).axes["stage"])
        ['embed', '0 attn', '0 mlp', '1 attn', '1 mlp']
    """
    prompt, tokenizer = read_prompt(model, text, tokenizer), as_tokenizer(model, tokenizer)
    places = stages(model)
    _, cache = model.run_with_cache(prompt.tokens, names_filter=list(places.values()))
    logits = torch.stack([model.unembed(model.ln_final(cache[name]))[0] for name in places.values()])
    vocabulary = range(model.d_vocab)
    tokens = [str(i) if tokenizer is None else token_label(tokenizer, i) for i in vocabulary]
    axes = {"stage": list(places), "position": prompt.positions, "token": tokens}
    return Labelled(logits, axes, title="logits after each layer")


@observing
def direct_logit_attribution(
    model: GPT2,
    text: Text,
    answer: int | str,
    wrong: int | str | None = None,
    *,
    tokenizer: Any = None,
) -> Labelled:
    """Return how much each head, MLP, embedding and bias adds to the logit of an answer, at every position.

    The final layer norm divides by one number for each position. With that number held fixed, the logits are linear in
    what each part has added to the residual stream, so the parts add up exactly to the answer's logit (Elhage et al.
    2021). TransformerLens: ``cache.logit_attrs`` of ``cache.get_full_resid_decomposition`` on weights whose final layer
    norm is folded into ``W_U``; the part ``bias`` here includes the biases of the final layer norm and the unembedding.

    Args:
        model: with pre-norm blocks, in any mode: dropout is off.
        text: the prompt, as text or token ids.
        answer: the token, as text or id, whose logit is taken apart.
        wrong: a token whose logit is subtracted (default: none is).
        tokenizer: reads the text and gives the labels; see `read_prompt`.

    Returns:
        Logits with the axes ``part`` (``embed``, ``pos_embed``, ``L0H0`` …, ``L0 mlp`` …, ``bias``) and ``position``.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=10, n_ctx=8)).eval()
        >>> list(direct_logit_attribution(model, [3, 1, 4], answer=2).axes["part"])
        ['embed', 'pos_embed', 'L0H0', 'L0H1', 'L0 mlp', 'bias']
    """
    prompt, tokenizer = read_prompt(model, text, tokenizer), as_tokenizer(model, tokenizer)
    right = one_token(model, answer, tokenizer)
    other = None if wrong is None else one_token(model, wrong, tokenizer)
    direction = model.unembed.W_U[:, right] - (0 if other is None else model.unembed.W_U[:, other])
    b_U = model.unembed.b_U
    constant = 0 if b_U is None else b_U[right] - (0 if other is None else b_U[other])
    _, cache = model.run_with_cache(prompt.tokens)
    parts = attribution(model, cache, direction.expand(prompt.tokens.shape[1], -1))
    parts["bias"] = parts["bias"] + constant
    shown = [str(i) if tokenizer is None else repr(token_label(tokenizer, i)) for i in (right, other) if i is not None]
    named = " less ".join(shown)
    axes = {"part": list(parts), "position": prompt.positions}
    return Labelled(torch.stack(list(parts.values())), axes, title=f"added to the logit of {named}")


def attribution(model: GPT2, cache: ActivationCache, direction: Tensor) -> dict[str, Tensor]:
    """Return what each part adds [seq] to the final residual's product with ``direction`` [seq d_model].

    Args:
        model: with pre-norm blocks.
        cache: all its activations for one prompt.
        direction: for each position, a column of ``W_U`` or a difference of columns.

    Raises:
        ValueError: the blocks are post-norm, so that the logits are not a sum over the parts.
    """
    if model.config.norm != "pre":
        raise ValueError("attribution needs pre-norm blocks: after a post-norm block the stream is no sum of its parts")
    ln_final: Any = model.ln_final
    parts = {"embed": cache["embed"][0], "pos_embed": cache["pos_embed"][0]}
    bias = torch.zeros_like(ln_final.b)
    for layer in range(model.config.n_layers):
        attn: Any = model.blocks[layer].attn
        added = einsum(cache["z", layer][0], attn.W_O, "seq head d_head, head d_head d_model -> head seq d_model")
        parts |= {f"L{layer}H{head}": each for head, each in enumerate(added)}
        parts[f"L{layer} mlp"] = cache["mlp_out", layer][0]
        bias = bias + attn.b_O
    parts["bias"] = bias.expand_as(parts["embed"])

    scale = cache["scale", None, "ln_final"][0]

    def of(part: Tensor) -> Tensor:
        normalized = (part - part.mean(-1, keepdim=True)) / scale * ln_final.w
        return (normalized * direction).sum(-1)

    found = {name: of(part) for name, part in parts.items()}
    found["bias"] = found["bias"] + direction @ ln_final.b
    return found
