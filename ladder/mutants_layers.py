"""Classic mistakes of the other layers: embeddings, layer norm, MLP, unembedding."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..assembly.config import GPT2Config
from ..components.mlp import ACTIVATIONS
from .mutant import Mutant


def _empty(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype))


def _other_way(matrix: Tensor) -> Tensor:
    """A matrix of the transpose's shape with the same numbers in memory: ``view`` where ``.T`` was meant."""
    return matrix.reshape(matrix.shape[::-1])


class PlainEmbed(nn.Module):
    """A row of ``W_E`` for each token."""

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.d_vocab, self.d_model = config.d_vocab, config.d_model
        self.W_E = _empty(self.d_vocab, self.d_model, dtype=dtype)

    def forward(self, tokens: Tensor, **_: object) -> Tensor:
        """``W_E[tokens]``."""
        return self.W_E[tokens]


class PlainPosEmbed(nn.Module):
    """A row of ``W_pos`` for each position."""

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.n_ctx, self.d_model = config.n_ctx, config.d_model
        self.W_pos = _empty(self.n_ctx, self.d_model, dtype=dtype)

    def forward(self, tokens: Tensor, **_: object) -> Tensor:
        """``W_pos[positions]``."""
        return self.W_pos[self.positions(tokens) % self.n_ctx]

    def positions(self, tokens: Tensor) -> Tensor:
        """0, 1, 2, … in each sequence."""
        return torch.arange(tokens.shape[1]).expand(tokens.shape)


class PlainLayerNorm(nn.Module):
    """Layer norm as it is written down, one method for each step."""

    axes: int | tuple[int, ...] = -1

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.d_model, self.eps = config.d_model, config.layer_norm_eps
        self.w, self.b = (_empty(self.d_model, dtype=dtype) for _ in range(2))

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """``(x - mean) / sqrt(variance + eps) * w + b``."""
        return self.affine(self.centred(x) / self.deviation(x))

    def centred(self, x: Tensor) -> Tensor:
        """``x`` less its mean."""
        return x - self.mean(x)

    def mean(self, x: Tensor) -> Tensor:
        """Over ``d_model``."""
        return x.mean(self.axes, keepdim=True)

    def variance(self, x: Tensor) -> Tensor:
        """The mean square around the mean."""
        return (x - self.mean(x)).pow(2).mean(self.axes, keepdim=True)

    def deviation(self, x: Tensor) -> Tensor:
        """What the centred vector is divided by."""
        return (self.variance(x) + self.eps).sqrt()

    def affine(self, normalized: Tensor) -> Tensor:
        """Gain, then bias."""
        return normalized * self.w + self.b


class PlainMLP(nn.Module):
    """The MLP as it is written down, one method for each step."""

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.act_fn = config.act_fn
        self.W_in, self.b_in = _empty(config.d_model, config.d_mlp, dtype=dtype), _empty(config.d_mlp, dtype=dtype)
        self.W_out, self.b_out = _empty(config.d_mlp, config.d_model, dtype=dtype), _empty(config.d_model, dtype=dtype)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """Widen, activate, narrow."""
        return self.narrow(self.activation(self.widen(x)))

    def widen(self, x: Tensor) -> Tensor:
        """``x @ W_in + b_in``."""
        return x @ self.W_in + self.b_in

    def activation(self, pre: Tensor) -> Tensor:
        """The configuration's ``act_fn``."""
        return ACTIVATIONS[self.act_fn](pre)

    def narrow(self, post: Tensor) -> Tensor:
        """``post @ W_out + b_out``."""
        return post @ self.W_out + self.b_out


class PlainUnembed(nn.Module):
    """``x @ W_U + b_U``."""

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.d_model = config.d_model
        self.W_U = _empty(config.d_model, config.d_vocab, dtype=dtype)
        self.b_U = _empty(config.d_vocab, dtype=dtype) if config.unembed_bias else None

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """The logits."""
        return self.biased(self.projected(x))

    def projected(self, x: Tensor) -> Tensor:
        """``x @ W_U``."""
        return x @ self.W_U

    def biased(self, logits: Tensor) -> Tensor:
        """``b_U`` added, where there is one."""
        return logits if self.b_U is None else logits + self.b_U


def _embed(mistake: str, hint: str, **steps: Any) -> Mutant:
    return Mutant(mistake, hint, "embed", PlainEmbed, (steps,))


EMBED: tuple[Mutant, ...] = (
    _embed(
        "embedding scaled by sqrt(d_model)",
        "The embedding is multiplied by sqrt(d_model), as in Vaswani et al. 2017. GPT-2 does not: return W_E[tokens].",
        forward=lambda self, tokens, **_: self.W_E[tokens] * math.sqrt(self.d_model),
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
        forward=lambda self, tokens, **_: _other_way(self.W_E).T[tokens],
    ),
    _embed(
        "rows normalised",
        "Each embedding is brought to length 1. Return the row of W_E as it is.",
        forward=lambda self, tokens, **_: F.normalize(self.W_E[tokens], dim=-1),
    ),
    _embed(
        "padding_idx=0",
        "The output is right, but token 0 gets no gradient: the embedding was made with padding_idx=0. GPT-2 has no "
        "padding token; leave padding_idx out.",
        forward=lambda self, tokens, **_: F.embedding(tokens, self.W_E, padding_idx=0),
    ),
    _embed(
        "no gradient to W_E",
        "The output is right, but no gradient reaches W_E: the row was taken from a detached copy (.data, .detach(), "
        "no_grad). Index the parameter itself.",
        forward=lambda self, tokens, **_: self.W_E.detach()[tokens],
    ),
)


def _pos_embed(mistake: str, hint: str, **steps: Any) -> Mutant:
    return Mutant(mistake, hint, "pos-embed", PlainPosEmbed, (steps,))


POS_EMBED: tuple[Mutant, ...] = (
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
        "no gradient to W_pos",
        "The output is right, but no gradient reaches W_pos: the rows were taken from a detached copy (.data, "
        ".detach(), no_grad, a buffer). Index the parameter itself.",
        forward=lambda self, tokens, **_: PlainPosEmbed.forward(self, tokens).detach(),
    ),
)


def _layer_norm(mistake: str, hint: str, **steps: Any) -> Mutant:
    return Mutant(mistake, hint, "layernorm", PlainLayerNorm, (steps,))


LAYER_NORM: tuple[Mutant, ...] = (
    _layer_norm(
        "eps missing",
        "layer_norm_eps is not used. Add it to the variance, under the root: sqrt(variance + eps).",
        deviation=lambda self, x: self.variance(x).sqrt(),
    ),
    _layer_norm(
        "eps outside the square root",
        "layer_norm_eps is added to the standard deviation. Add it to the variance, under the root.",
        deviation=lambda self, x: self.variance(x).sqrt() + self.eps,
    ),
    _layer_norm(
        "eps 1e-6 whatever the configuration says",
        "layer_norm_eps is 1e-6, not the configuration's. Take it from there (GPT-2's is 1e-5).",
        deviation=lambda self, x: (self.variance(x) + 1e-6).sqrt(),
    ),
    _layer_norm(
        "eps 1e-8 whatever the configuration says",
        "layer_norm_eps is 1e-8, not the configuration's. Take it from there (GPT-2's is 1e-5).",
        deviation=lambda self, x: (self.variance(x) + 1e-8).sqrt(),
    ),
    _layer_norm(
        "eps 1e-12 whatever the configuration says",
        "layer_norm_eps is 1e-12, BERT's, not the configuration's. Take it from there (GPT-2's is 1e-5).",
        deviation=lambda self, x: (self.variance(x) + 1e-12).sqrt(),
    ),
    _layer_norm(
        "eps 1e-5 whatever the configuration says",
        "layer_norm_eps is always 1e-5. Take it from the configuration.",
        deviation=lambda self, x: (self.variance(x) + 1e-5).sqrt(),
    ),
    _layer_norm(
        "unbiased variance",
        "The variance divides by d_model - 1. Divide by d_model: x.var(dim=-1, unbiased=False).",
        variance=lambda self, x: x.var(dim=-1, keepdim=True),
    ),
    _layer_norm(
        "sum of squares for their mean",
        "The squares are summed. The variance is their mean, over d_model.",
        variance=lambda self, x: self.centred(x).pow(2).sum(-1, keepdim=True),
    ),
    _layer_norm(
        "divided by the variance",
        "The vector is divided by variance + eps. Divide by its square root.",
        deviation=lambda self, x: self.variance(x) + self.eps,
    ),
    _layer_norm(
        "mean not subtracted",
        "The vector is divided by its standard deviation, but its mean is not taken off. Subtract the mean first.",
        centred=lambda self, x: x,
    ),
    _layer_norm(
        "RMS norm",
        "This is RMSNorm: no mean is taken off, neither from the vector nor in the variance. Subtract the mean first.",
        mean=lambda self, x: torch.zeros(()).to(x),
    ),
    _layer_norm(
        "variance around zero",
        "The mean is taken off the vector, but the variance is the mean of x², not of (x - mean)².",
        variance=lambda self, x: x.pow(2).mean(-1, keepdim=True),
    ),
    _layer_norm(
        "over the positions",
        "Mean and variance run over the positions (dim=1). Each position is normalised alone, over d_model: dim=-1.",
        axes=1,
    ),
    _layer_norm(
        "over positions and d_model together",
        "Mean and variance run over the whole sequence. Each position is normalised alone, over d_model: dim=-1.",
        axes=(1, 2),
    ),
    _layer_norm(
        "over the batch",
        "Mean and variance run over the batch (dim=0), as in batch norm. Normalise over d_model: dim=-1.",
        axes=0,
    ),
    _layer_norm(
        "gain missing",
        "The gain w is not used. Multiply the normalised vector by w, then add b.",
        affine=lambda self, normalized: normalized + self.b,
    ),
    _layer_norm(
        "bias missing",
        "The bias b is not used. Multiply the normalised vector by w, then add b.",
        affine=lambda self, normalized: normalized * self.w,
    ),
    _layer_norm(
        "bias before gain",
        "The bias is added before the gain multiplies: (n + b) * w. Multiply first: n * w + b.",
        affine=lambda self, normalized: (normalized + self.b) * self.w,
    ),
    _layer_norm(
        "gain and bias exchanged",
        "w and b have changed places: n * b + w. It is n * w + b.",
        affine=lambda self, normalized: normalized * self.b + self.w,
    ),
    _layer_norm(
        "gain counted from zero",
        "The vector is multiplied by 1 + w. The gain starts at 1 itself: n * w + b.",
        affine=lambda self, normalized: normalized * (1 + self.w) + self.b,
    ),
    _layer_norm(
        "no gradient through the standard deviation",
        "The output is right, but no gradient flows through the standard deviation: it was detached (or made under "
        "no_grad). Leave it in the graph.",
        deviation=lambda self, x: (self.variance(x) + self.eps).sqrt().detach(),
    ),
    _layer_norm(
        "no gradient through mean and standard deviation",
        "The output is right, but no gradient flows through mean and standard deviation: they were detached (or made "
        "under no_grad). Leave them in the graph.",
        mean=lambda self, x: x.mean(-1, keepdim=True).detach(),
        deviation=lambda self, x: (self.variance(x) + self.eps).sqrt().detach(),
    ),
)


def _mlp(mistake: str, hint: str, **steps: Any) -> Mutant:
    return Mutant(mistake, hint, "mlp", PlainMLP, (steps,))


def _activation(mistake: str, what: str, function: Any) -> Mutant:
    hint = (
        f"The activation is {what}. GPT-2's gelu_new is the tanh approximation of GELU: "
        "0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3))), F.gelu(x, approximate='tanh')."
    )
    return _mlp(mistake, hint, activation=lambda self, pre: function(pre))


def _tanh_gelu(x: Tensor, *, root: float = math.sqrt(2 / math.pi), power: int = 3, half: float = 0.5) -> Tensor:
    return half * x * (1 + torch.tanh(root * (x + 0.044715 * x**power)))


MLPS: tuple[Mutant, ...] = (
    _activation("erf GELU for tanh GELU", "the exact GELU, by the error function (F.gelu's default)", F.gelu),
    _activation("ReLU for GELU", "ReLU", F.relu),
    _activation("SiLU for GELU", "SiLU (swish), x * sigmoid(x)", F.silu),
    _activation(
        "quick GELU for GELU", "the quick GELU, x * sigmoid(1.702 * x)", lambda x: x * torch.sigmoid(1.702 * x)
    ),
    _activation("tanh for GELU", "tanh alone", torch.tanh),
    _activation("no activation", "missing", lambda x: x),
    _activation(
        "2/pi for sqrt(2/pi) in GELU", "gelu_new with 2/pi, not its root", lambda x: _tanh_gelu(x, root=2 / math.pi)
    ),
    _activation("x² for x³ in GELU", "gelu_new with x**2 in place of x**3", lambda x: _tanh_gelu(x, power=2)),
    _activation("0.5 missing in GELU", "gelu_new without its factor of 0.5", lambda x: _tanh_gelu(x, half=1.0)),
    _mlp(
        "gelu_new whatever act_fn says",
        "The activation is always gelu_new. Take it from the configuration's act_fn.",
        activation=lambda self, pre: ACTIVATIONS["gelu_new"](pre),
    ),
    _mlp(
        "activation after W_out",
        "The activation stands at the end, after W_out. It belongs between W_in and W_out.",
        forward=lambda self, x, **_: self.activation(self.narrow(self.widen(x))),
    ),
    _mlp(
        "activation twice",
        "The activation is applied after W_out too. It belongs between W_in and W_out alone.",
        forward=lambda self, x, **_: self.activation(PlainMLP.forward(self, x)),
    ),
    _mlp(
        "b_in missing",
        "b_in is not added. Add it before the activation.",
        widen=lambda self, x: x @ self.W_in,
    ),
    _mlp(
        "b_in after the activation",
        "b_in is added after the activation. Add it before.",
        forward=lambda self, x, **_: self.narrow(self.activation(x @ self.W_in) + self.b_in),
    ),
    _mlp(
        "b_out missing",
        "b_out is not added. Add it after W_out.",
        narrow=lambda self, post: post @ self.W_out,
    ),
    _mlp(
        "b_out twice",
        "b_out is added twice (F.linear and nn.Linear add it already). Add it once.",
        narrow=lambda self, post: post @ self.W_out + 2 * self.b_out,
    ),
    _mlp(
        "no bias at all",
        "Neither b_in nor b_out is added. Add b_in before the activation and b_out after W_out.",
        widen=lambda self, x: x @ self.W_in,
        narrow=lambda self, post: post @ self.W_out,
    ),
    _mlp(
        "weights reshaped for transposed",
        "W_in and W_out were brought to their shape by view or reshape where a transpose was meant, which scrambles "
        "them. nn.Linear keeps its weight transposed: use .T.",
        widen=lambda self, x: x @ _other_way(self.W_in).T + self.b_in,
        narrow=lambda self, post: post @ _other_way(self.W_out).T + self.b_out,
    ),
    _mlp(
        "input added",
        "The layer adds its own input to its output. The residual connection belongs to the block: return what the MLP "
        "computes, alone.",
        forward=lambda self, x, **_: PlainMLP.forward(self, x) + x,
    ),
)


def _unembed(mistake: str, hint: str, **steps: Any) -> Mutant:
    return Mutant(mistake, hint, "unembed", PlainUnembed, (steps,))


UNEMBED: tuple[Mutant, ...] = (
    _unembed("b_U missing", "b_U is not added. Add it to x @ W_U.", biased=lambda self, logits: logits),
    _unembed(
        "b_U twice",
        "b_U is added twice (F.linear and nn.Linear add it already). Add it once.",
        biased=lambda self, logits: logits if self.b_U is None else logits + 2 * self.b_U,
    ),
    _unembed(
        "W_U reshaped for transposed",
        "W_U was brought to its shape by view or reshape where a transpose was meant, which scrambles it. It is "
        "[d_model, d_vocab] for x @ W_U; W_E and nn.Linear's weight are [d_vocab, d_model]: use .T.",
        projected=lambda self, x: x @ _other_way(self.W_U).T,
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
    ),
    _unembed(
        "no gradient to W_U",
        "The output is right, but no gradient reaches W_U: it was detached (.data, .detach(), no_grad). Use the "
        "parameter itself.",
        projected=lambda self, x: x @ self.W_U.detach(),
    ),
)
