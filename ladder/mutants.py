"""Classic mistakes: wrong layers, each one small step from the right one. Its rung must fail every one of them."""

# A mutant takes only what its rung hands it, not all that the right layer takes.
# pyright: reportIncompatibleMethodOverride=false

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..assembly.config import GPT2Config
from ..assembly.model import GPT2
from ..components import MLP, Attention, Block, LayerNorm, PosEmbed
from .rungs import Build, block_arguments


@dataclass(frozen=True)
class Mutant:
    """A wrong layer.

    Args:
        mistake: what is wrong, in a few words.
        rung: the name of the rung that must fail it.
        build: the wrong layer, for a configuration, in a dtype.
    """

    mistake: str
    rung: str
    build: Build


class _EpsOutsideRoot(LayerNorm):
    def scale(self, centred: Tensor) -> Tensor:
        return centred.pow(2).mean(dim=-1, keepdim=True).sqrt() + self.layer_norm_eps


class _UnbiasedVariance(LayerNorm):
    def scale(self, centred: Tensor) -> Tensor:
        return (centred.pow(2).sum(dim=-1, keepdim=True) / (self.d_model - 1) + self.layer_norm_eps).sqrt()


class _ErfForTanh(MLP):
    def forward(self, normalized_resid_mid: Tensor) -> Tensor:
        if self.act_fn != "gelu_new":
            return super().forward(normalized_resid_mid)
        return F.gelu(normalized_resid_mid @ self.W_in + self.b_in) @ self.W_out + self.b_out


class _MaskOffByOne(Attention):
    def _allowed(self, q: Tensor, keys: Tensor, padding_mask: Tensor | None) -> Tensor:
        query_pos, key_pos = q.shape[1], keys.shape[2]
        return torch.ones(query_pos, key_pos, dtype=torch.bool).tril(key_pos - query_pos + 1)


class _MaskAfterSoftmax(Attention):
    def attention_scores(self, q: Tensor, keys: Tensor, allowed: Tensor) -> Tensor:
        self._allowed_here = allowed
        return super().attention_scores(q, keys, torch.ones_like(allowed))

    def attention_pattern(self, scores: Tensor) -> Tensor:
        return super().attention_pattern(scores) * self._allowed_here


class _SoftmaxOverQueries(Attention):
    def attention_pattern(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-2)


class _OutputBiasMissing(Attention):
    def forward(self, normalized_resid_pre: Tensor) -> Tensor:
        return super().forward(normalized_resid_pre) - self.b_O


class _HeadsTransposed(Attention):
    """The heads' outputs laid side by side with head and width exchanged, before ``W_O``."""

    def forward(self, normalized_resid_pre: Tensor) -> Tensor:
        q, k, v = self.project(normalized_resid_pre)
        z = self._explicit(q, k.transpose(1, 2), v.transpose(1, 2), None)
        return rearrange(z, "b s n h -> b s (h n)") @ self.W_O.flatten(0, 1) + self.b_O


class _OneNormForTwo(Block):
    def forward(self, resid_pre: Tensor) -> Tensor:
        resid_mid = resid_pre + self.attn(self.ln1(resid_pre))
        return resid_mid + self.mlp(self.ln1(resid_mid))


class _AddedOnce(Block):
    def forward(self, resid_pre: Tensor) -> Tensor:
        resid_mid = resid_pre + self.attn(self.ln1(resid_pre))
        return self.mlp(self.ln2(resid_mid))


class _PositionsFromOne(PosEmbed):
    def forward(self, tokens: Tensor) -> Tensor:
        # The last position has no row of its own left, and gets the first: what a roll would do.
        positions = (torch.arange(tokens.shape[1]) + 1) % self.n_ctx
        return super().forward(tokens, positions=positions.expand(tokens.shape))


class _NoPositions(GPT2):
    def final_residual(self, tokens: Tensor, **_: object) -> Tensor:
        residual = self.embed(tokens)
        for block in self.blocks:
            residual = block(residual)
        return self.ln_final(residual)


class _NoFinalGain(GPT2):
    def final_residual(self, tokens: Tensor, **_: object) -> Tensor:
        # The bias is as it should be; only the gain is left out.
        gain, bias = self.get_parameter("ln_final.w"), self.get_parameter("ln_final.b")
        return (super().final_residual(tokens) - bias) / gain + bias


def _norm(cls: type[LayerNorm]) -> Build:
    return lambda c, t: cls(d_model=c.d_model, layer_norm_eps=c.layer_norm_eps, fused=False, dtype=t)


def _mlp(cls: type[MLP]) -> Build:
    return lambda c, t: cls(d_model=c.d_model, d_mlp=c.d_mlp, act_fn=c.act_fn, dtype=t)


def _attention(cls: type[Attention]) -> Build:
    return lambda c, t: cls(
        d_model=c.d_model, n_heads=c.n_heads, d_head=c.d_head, scale=c.attn_scale(0), fused=False, dtype=t
    )


def _unscaled(c: GPT2Config, t: torch.dtype) -> Attention:
    return Attention(d_model=c.d_model, n_heads=c.n_heads, d_head=c.d_head, scale=1.0, dtype=t)


MUTANTS: tuple[Mutant, ...] = (
    Mutant("eps outside the square root", "layernorm", _norm(_EpsOutsideRoot)),
    Mutant("unbiased variance", "layernorm", _norm(_UnbiasedVariance)),
    Mutant("erf GELU for tanh GELU", "mlp", _mlp(_ErfForTanh)),
    Mutant("no 1/sqrt(d_head)", "attention", _unscaled),
    Mutant("causal mask off by one", "attention", _attention(_MaskOffByOne)),
    Mutant("causal mask after the softmax", "attention", _attention(_MaskAfterSoftmax)),
    Mutant("softmax over the queries", "attention", _attention(_SoftmaxOverQueries)),
    Mutant("b_O missing", "attention", _attention(_OutputBiasMissing)),
    Mutant("heads transposed before W_O", "attention", _attention(_HeadsTransposed)),
    Mutant("post-norm for pre-norm", "block", lambda c, t: Block(**block_arguments(c), norm="post", dtype=t)),
    Mutant("one layer norm for two", "block", lambda c, t: _OneNormForTwo(**block_arguments(c), dtype=t)),
    Mutant("residual added once", "block", lambda c, t: _AddedOnce(**block_arguments(c), dtype=t)),
    Mutant(
        "positions from one", "pos-embed", lambda c, t: _PositionsFromOne(n_ctx=c.n_ctx, d_model=c.d_model, dtype=t)
    ),
    Mutant("positions not added", "model", lambda c, t: _NoPositions(c, dtype=t)),
    Mutant("final layer norm without its gain", "model", lambda c, t: _NoFinalGain(c, dtype=t)),
)
