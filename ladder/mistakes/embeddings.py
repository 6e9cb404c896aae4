"""Classic mistakes of the embeddings and of the output projection."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...assembly.config import GPT2Config
from .mistake import Mistake, empty, entries, other_way


class PlainEmbed(nn.Module):
    """A row of ``W_E`` for each token."""

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.d_vocab, self.d_model = config.d_vocab, config.d_model
        self.W_E = empty(self.d_vocab, self.d_model, dtype=dtype)

    def forward(self, tokens: Tensor, **_: object) -> Tensor:
        """``W_E[tokens]``."""
        return self.W_E[tokens]


class PlainPosEmbed(nn.Module):
    """A row of ``W_pos`` for each position."""

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.n_ctx, self.d_model = config.n_ctx, config.d_model
        self.W_pos = empty(self.n_ctx, self.d_model, dtype=dtype)

    def forward(self, tokens: Tensor, **_: object) -> Tensor:
        """``W_pos[positions]``."""
        return self.W_pos[self.positions(tokens) % self.n_ctx]

    def positions(self, tokens: Tensor) -> Tensor:
        """0, 1, 2, … in each sequence."""
        return torch.arange(tokens.shape[1]).expand(tokens.shape)


class PlainUnembed(nn.Module):
    """``x @ W_U + b_U``. In a model whose logits are tied, `tie_to` makes ``W_U`` the embedding's table."""

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.d_model = config.d_model
        self.W_U = empty(config.d_model, config.d_vocab, dtype=dtype)
        self.b_U = empty(config.d_vocab, dtype=dtype) if config.unembed_bias else None
        self._tied_to: tuple[nn.Module, ...] = ()

    def tie_to(self, embed: nn.Module) -> None:
        """Use ``embed.W_E`` transposed from now on, and no ``W_U`` of its own."""
        self._parameters.pop("W_U", None)
        self._tied_to = (embed,)  # in a tuple, so that it does not become a submodule

    def __getattr__(self, name: str) -> Any:
        if name == "W_U" and self._tied_to:
            return self._tied_to[0].W_E.T
        return super().__getattr__(name)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """The logits."""
        return self.biased(self.projected(x))

    def projected(self, x: Tensor) -> Tensor:
        """``x @ W_U``."""
        return x @ self.W_U

    def biased(self, logits: Tensor) -> Tensor:
        """``b_U`` added, where there is one."""
        return logits if self.b_U is None else logits + self.b_U


_embed = entries("embed", PlainEmbed)

EMBED: tuple[Mistake, ...] = (
    _embed(
        "embedding scaled by sqrt(d_model)",
        "The embedding is multiplied by sqrt(d_model), as in Vaswani et al. 2017. GPT-2 does not: return W_E[tokens].",
        forward=lambda self, tokens, **_: self.W_E[tokens] * math.sqrt(self.d_model),
    ),
    _embed(
        "embedding divided by sqrt(d_model)",
        "The embedding is divided by sqrt(d_model). GPT-2 does not: return W_E[tokens].",
        rare=True,
        forward=lambda self, tokens, **_: self.W_E[tokens] / math.sqrt(self.d_model),
    ),
    _embed(
        "tokens counted from one",
        "Each token gets the row after its own. Ids count from 0: return W_E[tokens].",
        forward=lambda self, tokens, **_: self.W_E[(tokens + 1) % self.d_vocab],
    ),
    _embed(
        "row before the token's own",
        "Each token gets the row before its own. Ids count from 0: return W_E[tokens].",
        forward=lambda self, tokens, **_: self.W_E[tokens - 1],
    ),
    _embed(
        "W_E reshaped for transposed",
        "W_E was brought to another shape by view or reshape where a transpose was meant, which scrambles it. Its rows "
        "are the tokens: [d_vocab, d_model].",
        forward=lambda self, tokens, **_: other_way(self.W_E).T[tokens],
    ),
    _embed(
        "rows normalised",
        "Each embedding is brought to length 1. Return the row of W_E as it is.",
        forward=lambda self, tokens, **_: F.normalize(self.W_E[tokens], dim=-1),
    ),
    _embed(
        "padding_idx=0",
        "The output is right, but token 0 gets no gradient. That is what padding_idx=0 does: GPT-2 has no padding "
        "token; leave it out.",
        forward=lambda self, tokens, **_: F.embedding(tokens, self.W_E, padding_idx=0),
    ),
    _embed(
        "no gradient to W_E",
        "The output is right, but no gradient reaches W_E. Look for .data, .detach(), no_grad or "
        "requires_grad=False, and index the parameter itself.",
        forward=lambda self, tokens, **_: self.W_E.detach()[tokens],
    ),
)


_pos_embed = entries("pos-embed", PlainPosEmbed)


def _sinusoidal(interleaved: bool) -> Callable[..., Tensor]:
    """Return the step that gives sines and cosines, in turn or one after the other."""

    def forward(self: PlainPosEmbed, tokens: Tensor, **_: object) -> Tensor:
        half = -(-self.d_model // 2)
        rates = 10_000.0 ** (-torch.arange(half).to(self.W_pos) * 2 / self.d_model)
        angles = torch.arange(tokens.shape[1]).to(self.W_pos)[:, None] * rates
        both = torch.stack([angles.sin(), angles.cos()], dim=-1 if interleaved else 1).flatten(1)
        return both[:, : self.d_model].expand(*tokens.shape, -1)

    return forward


POS_EMBED: tuple[Mistake, ...] = (
    _pos_embed(
        "positions from one",
        "Positions count from 1. The first token's is 0: W_pos[0], W_pos[1], …",
        positions=lambda self, tokens: torch.arange(1, tokens.shape[1] + 1).expand(tokens.shape),
    ),
    _pos_embed(
        "positions by batch index",
        "Positions run along the batch: each sequence has one position throughout. Run them along seq.",
        positions=lambda self, tokens: torch.arange(len(tokens))[:, None].expand(tokens.shape),
    ),
    _pos_embed(
        "positions reversed",
        "Positions count backwards, from the last token. The first token's is 0.",
        positions=lambda self, tokens: torch.arange(tokens.shape[1]).flip(0).expand(tokens.shape),
    ),
    _pos_embed(
        "rows from the end of W_pos",
        "The last seq rows of W_pos are used. Use the first: W_pos[:seq].",
        positions=lambda self, tokens: torch.arange(self.n_ctx)[-tokens.shape[1] :].expand(tokens.shape),
    ),
    _pos_embed(
        "W_pos indexed by tokens",
        "W_pos is indexed with the tokens. Index it with their positions, 0 to seq - 1.",
        positions=lambda self, tokens: tokens,
    ),
    _pos_embed(
        "one position for all",
        "Every position gets W_pos[0], the first row. Position i gets W_pos[i].",
        positions=lambda self, tokens: torch.zeros_like(tokens),
    ),
    _pos_embed(
        "positions counted through the batch",
        "Positions go on counting from one sequence of the batch to the next. Each sequence starts at 0.",
        positions=lambda self, tokens: torch.arange(tokens.numel()).view(tokens.shape),
    ),
    _pos_embed(
        "positions scaled by sqrt(d_model)",
        "The position embedding is multiplied by sqrt(d_model). Return the rows of W_pos as they are.",
        forward=lambda self, tokens, **_: PlainPosEmbed.forward(self, tokens) * math.sqrt(self.d_model),
    ),
    _pos_embed(
        "sinusoidal positions",
        "The positions are sines and cosines, as in Vaswani et al. 2017, and W_pos is not used. GPT-2 learns its "
        "positions: return W_pos[:seq].",
        forward=_sinusoidal(interleaved=True),
        also=[{"forward": _sinusoidal(interleaved=False)}],
    ),
    _pos_embed(
        "no gradient to W_pos",
        "The output is right, but no gradient reaches W_pos. Look for .data, .detach(), no_grad, a buffer or "
        "requires_grad=False, and index the parameter itself.",
        forward=lambda self, tokens, **_: PlainPosEmbed.forward(self, tokens).detach(),
    ),
)


_unembed = entries("unembed", PlainUnembed)

UNEMBED: tuple[Mistake, ...] = (
    _unembed("b_U not added", "b_U is not added. Add it to x @ W_U.", biased=lambda self, logits: logits),
    _unembed(
        "b_U twice",
        "b_U is added twice. Add it once: nn.Linear and F.linear add it by themselves.",
        biased=lambda self, logits: logits if self.b_U is None else logits + 2 * self.b_U,
    ),
    _unembed(
        "W_U reshaped for transposed",
        "W_U was brought to its shape by view or reshape where a transpose was meant, which scrambles it. It is "
        "[d_model, d_vocab] for x @ W_U; W_E and nn.Linear's weight are [d_vocab, d_model]: use .T.",
        projected=lambda self, x: x @ other_way(self.W_U).T,
    ),
    _unembed(
        "softmax applied",
        "The output is probabilities. Return logits: no softmax, cross-entropy applies its own.",
        forward=lambda self, x, **_: PlainUnembed.forward(self, x).softmax(-1),
    ),
    _unembed(
        "log-softmax applied",
        "The output is log-probabilities. Return logits: no log_softmax, cross-entropy applies its own.",
        forward=lambda self, x, **_: PlainUnembed.forward(self, x).log_softmax(-1),
    ),
    _unembed(
        "logits scaled by 1/sqrt(d_model)",
        "The logits are divided by sqrt(d_model), as models with tied weights sometimes do. GPT-2 does not.",
        projected=lambda self, x: x @ self.W_U / math.sqrt(self.d_model),
        also=[{"forward": lambda self, x, **_: PlainUnembed.forward(self, x) / math.sqrt(self.d_model)}],
    ),
    _unembed(
        "no gradient to W_U",
        "The output is right, but no gradient reaches W_U. Look for .data, .detach(), no_grad or "
        "requires_grad=False, and use the parameter itself.",
        projected=lambda self, x: x @ self.W_U.detach(),
    ),
)
