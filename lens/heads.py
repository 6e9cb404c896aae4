"""What attention heads do: patterns, the scores of known kinds of heads, and the circuits in their weights."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..assembly.model import GPT2
from .labelled import Labelled
from .observing import check_head, observing
from .prompt import Text, Texts, as_tokenizer, read_prompt, read_prompts, token_label

HeadKind = Literal["previous token", "duplicate token", "induction"]
"""A pattern that `head_scores` looks for."""


@observing
def attention_patterns(model: GPT2, text: Text, *, tokenizer: Any = None) -> Labelled:
    """Return the attention pattern of every head, with the axes ``layer``, ``head``, ``query`` and ``key``.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=10, n_ctx=8)).eval()
        >>> attention_patterns(model, [3, 1, 4]).values.shape
        torch.Size([2, 2, 3, 3])
    """
    prompt = read_prompt(model, text, tokenizer)
    values = _patterns(model, prompt.tokens)[:, 0]
    axes = {**_layers_and_heads(model), "query": prompt.positions, "key": prompt.positions}
    return Labelled(values, axes, title="attention")


def wanted_keys(tokens: Tensor, kind: HeadKind) -> Tensor:
    """Return where a head of a kind looks: True at [batch query_pos key_pos].

    A previous-token head looks at the position before. A duplicate-token head looks at earlier occurrences of the
    query's token. An induction head looks at what came after them (Olsson et al. 2022).

    Args:
        tokens: [batch seq].
        kind: the kind of head.

    Example:
        >>> import torch
        >>> wanted_keys(torch.tensor([[7, 8, 7]]), "induction").nonzero().tolist()  # batch, query, key
        [[0, 2, 1]]
    """
    seq = tokens.shape[1]
    if kind == "previous token":
        return torch.eye(seq, dtype=torch.bool, device=tokens.device).roll(-1, 1).tril(-1).expand(len(tokens), -1, -1)
    same = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)
    if kind == "duplicate token":
        return same
    if kind == "induction":
        return F.pad(same, (1, 0))[:, :, :-1]
    raise ValueError(f"kind is {kind!r}; it can be 'previous token', 'duplicate token' or 'induction'")


@observing
def head_scores(model: GPT2, tokens: Texts, kind: HeadKind, *, tokenizer: Any = None) -> Labelled:
    """Return how much of its attention each head gives to the keys that a head of a kind looks at.

    The mean is over the queries that have such a key. ``transformer_lens.head_detector.detect_head`` takes the mean
    over all queries, so its score is smaller by their share.

    Args:
        model: in any mode; dropout is off.
        tokens: one prompt or several of as many tokens, as text or tokens [batch seq]; random tokens that come twice
            show induction best.
        kind: see `wanted_keys`.
        tokenizer: reads text; see `read_prompt`.

    Raises:
        ValueError: no query has such a key, as for induction in a text without repetition.

    Example:
        >>> import torch
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=10, n_ctx=8)).eval()
        >>> head_scores(model, torch.tensor([[3, 1, 4, 3, 1, 4]]), "induction").values.shape
        torch.Size([2, 2])
    """
    tokens = read_prompts(model, tokens, tokenizer)
    wanted = wanted_keys(tokens, kind)
    asking = wanted.any(-1).sum()
    if not asking:
        raise ValueError(f"no token of the prompt has a key for {kind}: repeat some tokens")
    values = (_patterns(model, tokens) * wanted[:, None]).sum((1, 3, 4)) / asking
    return Labelled(values, _layers_and_heads(model), title=f"{kind}: share of attention")


@observing
def qk_circuit(model: GPT2, layer: int, head: int, text: Text, *, tokenizer: Any = None) -> Labelled:
    """Return the scores between the tokens of a text by a head's weights alone: what it looks for, without context.

    ``W_E W_Q W_Kᵀ W_Eᵀ / sqrt(d_head)`` for the given tokens (Elhage et al. 2021), without positions, layer norm and
    biases. TransformerLens: ``model.W_E @ model.QK[layer, head] @ model.W_E.T``, which is not scaled.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=10, n_ctx=8)).eval()
        >>> qk_circuit(model, 0, 1, [3, 1, 4]).axes["key"]  # distinct tokens, in the order of their ids
        ['1', '3', '4']
    """
    check_head(model, layer, head)
    embedded, labels = _embedded(model, text, tokenizer)
    attn: Any = model.blocks[layer].attn
    scores = (embedded @ attn.W_Q[head]) @ (embedded @ attn.W_K[head]).T * attn.scale
    title = f"L{layer}H{head}: score of a query's token for a key's token"
    return Labelled(scores, {"query": labels, "key": labels}, title=title)


@observing
def ov_circuit(model: GPT2, layer: int, head: int, text: Text, *, tokenizer: Any = None) -> Labelled:
    """Return what a head that attends to each token of a text adds to the logit of each of them.

    ``W_E W_V W_O W_U`` for the given tokens (Elhage et al. 2021), without layer norm and biases. A head that copies has
    a large diagonal. TransformerLens: ``model.W_E @ model.OV[layer, head] @ model.W_U``.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=10, n_ctx=8)).eval()
        >>> ov_circuit(model, 0, 1, [3, 1, 4]).values.shape  # attended token, logit
        torch.Size([3, 3])
    """
    check_head(model, layer, head)
    embedded, labels = _embedded(model, text, tokenizer)
    tokens = read_prompt(model, text, tokenizer).tokens[0].unique()
    attn: Any = model.blocks[layer].attn
    logits = embedded @ attn.W_V[head] @ attn.W_O[head] @ model.unembed.W_U[:, tokens]
    return Labelled(logits, {"attended": labels, "logit": labels}, title=f"L{layer}H{head}: added to the logit")


def _embedded(model: GPT2, text: Text, tokenizer: Any) -> tuple[Tensor, list[str]]:
    """The embeddings of a text's distinct tokens, in the order of their ids, and their labels."""
    read = as_tokenizer(model, tokenizer)
    tokens = read_prompt(model, text, tokenizer).tokens[0].unique()
    labels = [str(i) if read is None else token_label(read, i) for i in tokens.tolist()]
    return model.embed.W_E[tokens], labels


def _patterns(model: GPT2, tokens: Tensor) -> Tensor:
    """[n_layers batch n_heads query_pos key_pos]."""
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    return torch.stack([cache["pattern", layer] for layer in range(model.config.n_layers)])


def _layers_and_heads(model: GPT2) -> dict[str, list[str]]:
    return {
        "layer": [str(layer) for layer in range(model.config.n_layers)],
        "head": [str(head) for head in range(model.config.n_heads)],
    }
