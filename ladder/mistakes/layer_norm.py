"""Classic mistakes of layer norm."""

import torch
from torch import Tensor, nn

from ...assembly.config import GPT2Config
from .mistake import Mistake, empty, entries


class PlainLayerNorm(nn.Module):
    """Layer norm as it is written down, one method for each step."""

    axes: int | tuple[int, ...] = -1

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.d_model, self.eps = config.d_model, config.layer_norm_eps
        self.w, self.b = (empty(self.d_model, dtype=dtype) for _ in range(2))

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


_layer_norm = entries("layer-norm", PlainLayerNorm)


def _other_eps(eps: str) -> Mistake:
    value, whose = float(eps), {"1e-12": ", BERT's", "1e-5": ", GPT-2's"}.get(eps, "")
    others = "" if eps == "1e-5" else " (GPT-2's is 1e-5)"
    return _layer_norm(
        f"eps is always {eps}",
        f"layer_norm_eps is {eps}{whose}, whatever the configuration's is. Take it from there{others}.",
        rare=eps == "1e-4",
        deviation=lambda self, x: (self.variance(x) + value).sqrt(),
    )


LAYER_NORM: tuple[Mistake, ...] = (
    _layer_norm(
        "eps not added",
        "layer_norm_eps is not used. Add it to the variance, under the root: sqrt(variance + eps).",
        deviation=lambda self, x: self.variance(x).sqrt(),
    ),
    _layer_norm(
        "eps outside the square root",
        "layer_norm_eps is added to the standard deviation. Add it to the variance, under the root.",
        deviation=lambda self, x: self.variance(x).sqrt() + self.eps,
    ),
    *(_other_eps(eps) for eps in ("1e-3", "1e-4", "1e-5", "1e-6", "1e-8", "1e-12")),
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
        "The mean is taken off the vector, but the variance is the mean of x², not of (x - mean)². Take "
        "the mean of (x - mean)².",
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
        "mean over the positions",
        "The mean runs over the positions (dim=1). Each position has a mean of its own, over d_model: dim=-1.",
        centred=lambda self, x: x - x.mean(1, keepdim=True),
        also=[{"mean": lambda self, x: x.mean(1, keepdim=True)}],
    ),
    _layer_norm(
        "variance over the positions",
        "The variance runs over the positions (dim=1). Each position has a variance of its own, over d_model: dim=-1.",
        variance=lambda self, x: x.var(1, unbiased=False, keepdim=True),
        also=[{"variance": lambda self, x: self.centred(x).pow(2).mean(1, keepdim=True)}],
    ),
    _layer_norm(
        "mean over the batch",
        "The mean runs over the batch (dim=0). Each position has a mean of its own, over d_model: dim=-1.",
        rare=True,
        centred=lambda self, x: x - x.mean(0, keepdim=True),
        also=[{"mean": lambda self, x: x.mean(0, keepdim=True)}],
    ),
    _layer_norm(
        "variance over the batch",
        "The variance runs over the batch (dim=0). Each position has a variance of its own, over d_model: dim=-1.",
        rare=True,
        variance=lambda self, x: x.var(0, unbiased=False, keepdim=True),
        also=[{"variance": lambda self, x: self.centred(x).pow(2).mean(0, keepdim=True)}],
    ),
    _layer_norm(
        "not divided by the standard deviation",
        "The mean is taken off, but the vector is not divided. Divide it by sqrt(variance + eps).",
        deviation=lambda self, x: torch.ones(()).to(x),
    ),
    _layer_norm(
        "multiplied by the standard deviation",
        "The vector is multiplied by sqrt(variance + eps). Divide by it.",
        rare=True,
        deviation=lambda self, x: (self.variance(x) + self.eps).rsqrt(),
    ),
    _layer_norm(
        "mean absolute deviation",
        "The vector is divided by its mean absolute deviation, not by sqrt(variance + eps).",
        rare=True,
        deviation=lambda self, x: self.centred(x).abs().mean(-1, keepdim=True) + self.eps,
        also=[{"deviation": lambda self, x: self.centred(x).abs().mean(-1, keepdim=True)}],
    ),
    _layer_norm(
        "gain and bias not applied",
        "Neither the gain w nor the bias b is used. Multiply the normalised vector by w, then add b.",
        affine=lambda self, normalized: normalized,
    ),
    _layer_norm(
        "gain applied twice",
        "The normalised vector is multiplied by w twice. Multiply once, then add b.",
        rare=True,
        affine=lambda self, normalized: normalized * self.w**2 + self.b,
    ),
    _layer_norm(
        "bias subtracted",
        "The bias b is subtracted. Add it: n * w + b.",
        rare=True,
        affine=lambda self, normalized: normalized * self.w - self.b,
    ),
    _layer_norm(
        "gain not applied",
        "The gain w is not used. Multiply the normalised vector by w, then add b.",
        affine=lambda self, normalized: normalized + self.b,
    ),
    _layer_norm(
        "bias not added",
        "The bias b is not used. Multiply the normalised vector by w, then add b.",
        affine=lambda self, normalized: normalized * self.w,
    ),
    _layer_norm(
        "bias before gain",
        "The gain multiplies the bias, too, as in (n + b) * w. Multiply first: n * w + b.",
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
        "The output is right, but no gradient flows through the standard deviation. Leave it in the graph (.detach() "
        "and no_grad take it out), and in the derivative if the backward is written by hand.",
        deviation=lambda self, x: (self.variance(x) + self.eps).sqrt().detach(),
    ),
    _layer_norm(
        "no gradient through the mean",
        "The output is right, but no gradient flows through the mean. Leave it in the graph (.detach() and no_grad "
        "take it out).",
        rare=True,
        centred=lambda self, x: x - x.mean(-1, keepdim=True).detach(),
        also=[{"mean": lambda self, x: x.mean(-1, keepdim=True).detach()}],
    ),
    _layer_norm(
        "no gradient through mean and standard deviation",
        "The output is right, but no gradient flows through mean and standard deviation. Leave them in the graph "
        "(.detach() and no_grad take them out), and in the derivative if the backward is written by hand.",
        mean=lambda self, x: x.mean(-1, keepdim=True).detach(),
        deviation=lambda self, x: (self.variance(x) + self.eps).sqrt().detach(),
    ),
)
