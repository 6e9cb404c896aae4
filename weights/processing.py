"""TransformerLens's weight processing: the same log-probabilities from weights that are easier to read.

Each step is a flag of ``HookedTransformer.from_pretrained``, by its name, and gives the numbers that
``transformer_lens.weight_processing.ProcessWeights`` gives; there in float32, whatever the model has, here in float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..assembly.model import GPT2
from .libraries import from_hooked_transformer, to_hooked_state_dict


def fold(
    model: GPT2,
    *,
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,
    fold_value_biases: bool = True,
    refactor_factored_attn_matrices: bool = False,
    dtype: torch.dtype | None = None,
    fused: bool = True,
) -> GPT2:
    """Return a new model with processed weights and this one's log-probabilities; the defaults are TransformerLens's.

    The output projection of the result is untied and has a bias, if the flags need that. The logits change only with
    ``center_unembed``, by one constant for each position. Of the activations, only those change that a flag is meant to
    change. Dropout acts differently on processed weights: do not train the result with dropout.

    Args:
        fold_ln: multiply gains and biases of layer norms into the weights that read from them, so that gain 1 and bias
            0 remain; then subtract from those weights their mean over ``d_model``, which adds nothing, because a layer
            norm's output has the mean 0.
        center_writing_weights: subtract from the weights that write to the residual stream their mean over ``d_model``,
            which the next layer norm would subtract.
        center_unembed: subtract from ``W_U`` and ``b_U`` their mean over the vocabulary, which softmax ignores.
        fold_value_biases: move ``b_V`` through ``W_O`` into ``b_O``, since each row of an attention pattern sums to 1.
        refactor_factored_attn_matrices: replace each head's ``W_Q`` and ``W_K``, biases included, by U sqrt(S) and
            V sqrt(S) of the singular value decomposition of ``W_Q W_K^T``, and ``W_V`` and ``W_O`` by U S and V^T of
            that of ``W_V W_O``. Singular values beyond the rank are 0.
        dtype: dtype of the result (default: the model's). The arithmetic is float64, rounded once.
        fused: as for `GPT2`.

    Raises:
        WeightsError: the model is post-norm, for which TransformerLens has no form.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6)).eval()
        >>> tokens = torch.tensor([[1, 2, 3]])
        >>> before, after = model(tokens).log_softmax(-1), fold(model)(tokens).log_softmax(-1)
        >>> bool((after - before).abs().max() < 1e-5)
        True
    """
    tensors, dtype = to_hooked_state_dict(model), dtype or model.embed.W_E.dtype

    def part(*prefixes: str) -> dict[str, Tensor]:  # in float64, one part of the model at a time
        return {name: tensor.double() for name, tensor in tensors.items() if name.startswith(prefixes)}

    def put(changed: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in changed.items()})

    for layer in range(model.config.n_layers):
        prefix = f"blocks.{layer}."
        block = {name.removeprefix(prefix): tensor for name, tensor in part(prefix).items()}
        if fold_ln:
            _fold_norm(block, "ln1", {"attn.W_Q": "attn.b_Q", "attn.W_K": "attn.b_K", "attn.W_V": "attn.b_V"})
            _fold_norm(block, "ln2", {"mlp.W_in": "mlp.b_in"})
        if fold_value_biases or refactor_factored_attn_matrices:
            _fold_value_bias(block)
        if center_writing_weights:
            _center(block, ("attn.W_O", "attn.b_O", "mlp.W_out", "mlp.b_out"))
        if refactor_factored_attn_matrices:
            _refactor(block)
        put({prefix + name: tensor for name, tensor in block.items()})

    # Before and after the blocks.
    tables = part("embed.", "pos_embed.")
    if center_writing_weights:
        _center(tables, tuple(tables))
    put(tables)
    end = part("ln_final.", "unembed.")
    if fold_ln:
        _fold_norm(end, "ln_final", {"unembed.W_U": "unembed.b_U"})
    if center_unembed:
        _center(end, ("unembed.W_U", "unembed.b_U"))
    put(end)
    return from_hooked_transformer(tensors, model.config, fused=fused)


def _fold_norm(tensors: dict[str, Tensor], norm: str, readers: dict[str, str]) -> None:
    """Fold a layer norm into the weights [... d_model out] that read from it, and into their biases [... out]."""
    w, b = tensors[f"{norm}.w"], tensors[f"{norm}.b"]
    for weight, bias in readers.items():
        W = tensors[weight]
        tensors[bias] = tensors[bias] + b @ W
        W = w[:, None] * W
        tensors[weight] = W - W.mean(dim=-2, keepdim=True)
    tensors[f"{norm}.w"], tensors[f"{norm}.b"] = torch.ones_like(w), torch.zeros_like(b)


def _fold_value_bias(block: dict[str, Tensor]) -> None:
    """Fold the values' bias into the output's: each row of an attention pattern sums to 1."""
    b_V = block["attn.b_V"]
    block["attn.b_O"] = block["attn.b_O"] + torch.einsum("nh,nhd->d", b_V, block["attn.W_O"])
    block["attn.b_V"] = torch.zeros_like(b_V)


def _center(tensors: dict[str, Tensor], names: tuple[str, ...]) -> None:
    """Subtract the mean over the last axis."""
    for name in names:
        tensors[name] = tensors[name] - tensors[name].mean(dim=-1, keepdim=True)


def _refactor(block: dict[str, Tensor]) -> None:
    """Factor each head's two products again: evenly (query, key), and as a rotation and the rest (value, output)."""
    # The biases are the weights of one more input, which is always 1.
    Q, K = (torch.cat([block[f"attn.W_{x}"], block[f"attn.b_{x}"][:, None]], dim=1) for x in "QK")
    U, S, V = _singular_values(Q, K)
    for x, half in (("Q", U), ("K", V)):
        half = half * S.sqrt()[:, None]
        block[f"attn.W_{x}"], block[f"attn.b_{x}"] = half[:, :-1], half[:, -1]
    U, S, V = _singular_values(block["attn.W_V"], block["attn.W_O"].mT)
    block["attn.W_V"], block["attn.W_O"] = U * S[:, None], V.mT


def _singular_values(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V of ``left @ right.mT`` [n_heads d_model d_model], from its factors [n_heads d_model d_head].

    The product, of far lower rank than its size, is never formed. U and V are [n_heads d_model d_head].
    """
    d_head = left.shape[-1]
    left_basis, left = torch.linalg.qr(left)
    right_basis, right = torch.linalg.qr(right)
    U, S, Vh = torch.linalg.svd(left @ right.mT)
    pad = (0, d_head - S.shape[-1])  # heads wider than the residual stream
    return F.pad(left_basis @ U, pad), F.pad(S, pad), F.pad(right_basis @ Vh.mT, pad)
