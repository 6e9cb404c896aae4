"""The rungs: one layer each, with its references, the inputs it is tried on, and how far it may be off.

The tests, ``make ladder`` and ``make parity`` all judge by `compare`. A case is a small random configuration: every
size drawn, all of them different, every parameter (biases and gains too) at a size that matters.
"""

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..assembly.config import GPT2Config
from ..assembly.model import GPT2
from ..components import MLP, Attention, Block, Embed, LayerNorm, PosEmbed, Unembed
from ..components.shapes import typecheck
from .answers import Answer, Reference, backward, difference, randomize

Build = Callable[[GPT2Config, torch.dtype], nn.Module]

FLOAT64_TOLERANCE = 1e-12

# Inclusive. Small, so that a case takes milliseconds; ranges that overlap, so that no size is always the larger one.
RANGES: dict[str, tuple[int, int]] = {
    "batch": (1, 4),
    "seq": (1, 9),
    "n_heads": (1, 5),
    "d_head": (2, 8),
    "d_model": (3, 24),
    "d_mlp": (2, 40),
    "d_vocab": (5, 40),
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "act_fn": ("gelu_new", "gelu", "relu"),
    "scale_attn_weights": (True, True, False),
    "layer_norm_eps": (1e-5, 1e-3),
}


@dataclass(frozen=True)
class Case:
    """One trial: a configuration, the input's sizes, and the seed of every number in it."""

    config: GPT2Config
    batch: int
    seq: int
    seed: int


def draw_case(source: random.Random, *, seq: tuple[int, int] = RANGES["seq"]) -> Case:
    """A case with sizes from ``RANGES``, all different, so that no two axes can be taken for one another."""
    sizes: dict[str, int] = {}
    for name, (least, most) in (RANGES | {"seq": seq}).items():
        sizes[name] = source.choice([size for size in range(least, most + 1) if size not in sizes.values()])
    batch, length = sizes.pop("batch"), sizes.pop("seq")
    config = GPT2Config(
        **sizes,
        n_layers=source.choice([1, 2, 3]),
        n_ctx=length + source.choice([0, 1, 5]),
        **{name: source.choice(choices) for name, choices in _CHOICES.items()},
    )
    return Case(config, batch, length, source.getrandbits(32))


@dataclass(frozen=True)
class Rung:
    """A layer on the ladder.

    Args:
        name: as in ``make test-<name>``.
        build: our layer, for a configuration, in a dtype.
        takes_tokens: its input is tokens, not a residual stream.
        float32: how far its float32 output may be from the reference's.
    """

    name: str
    build: Build
    takes_tokens: bool
    float32: float

    @property
    def references(self) -> tuple[Reference, ...]:
        """The layers of TransformerLens and transformers; loading those takes seconds."""
        from .references import REFERENCES

        return REFERENCES[self.name]

    @property
    def own(self) -> Reference:
        """Our own layer as a reference, which the tests prove against both libraries; it needs neither."""
        return Reference("gptladder", self.build)

    def tolerance(self, dtype: torch.dtype) -> float:
        """How far the output (and in float64 the gradients) may be from the reference's: absolute, for every entry."""
        return FLOAT64_TOLERANCE if dtype == torch.float64 else self.float32

    def input(self, case: Case, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        """A random input for the case."""
        if self.takes_tokens:
            return torch.randint(case.config.d_vocab, (case.batch, case.seq), generator=generator)
        shape = (case.batch, case.seq, case.config.d_model)
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


RUNGS: tuple[Rung, ...] = (
    Rung("embed", lambda c, t: Embed(d_vocab=c.d_vocab, d_model=c.d_model, dtype=t), True, 1e-6),
    Rung("pos-embed", lambda c, t: PosEmbed(n_ctx=c.n_ctx, d_model=c.d_model, dtype=t), True, 1e-6),
    Rung(
        "layer-norm", lambda c, t: LayerNorm(d_model=c.d_model, layer_norm_eps=c.layer_norm_eps, dtype=t), False, 2e-6
    ),
    Rung(
        "attention",
        lambda c, t: Attention(d_model=c.d_model, n_heads=c.n_heads, d_head=c.d_head, scale=c.attn_scale(0), dtype=t),
        False,
        5e-6,
    ),
    Rung("mlp", lambda c, t: MLP(d_model=c.d_model, d_mlp=c.d_mlp, act_fn=c.act_fn, dtype=t), False, 1e-6),
    Rung("block", lambda c, t: Block(**block_arguments(c), dtype=t), False, 2e-5),
    Rung(
        "unembed",
        lambda c, t: Unembed(d_model=c.d_model, d_vocab=c.d_vocab, bias=c.unembed_bias, dtype=t),
        False,
        1e-6,
    ),
    Rung("model", lambda c, t: GPT2(c, dtype=t), True, 5e-5),
)


def rung(name: str) -> Rung:
    """The rung of a name.

    Raises:
        ValueError: there is none.
    """
    spelled = name.replace("_", "-").replace("layernorm", "layer-norm")
    for each in RUNGS:
        if each.name == spelled:
            return each
    raise ValueError(f"there is no rung {name!r}; there are {', '.join(each.name for each in RUNGS)}")


def block_arguments(config: GPT2Config) -> dict[str, Any]:
    """The arguments of the first `Block` of a model."""
    return {
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "d_head": config.d_head,
        "d_mlp": config.d_mlp,
        "act_fn": config.act_fn,
        "layer_norm_eps": config.layer_norm_eps,
        "scale": config.attn_scale(0),
    }


UNANSWERED = Answer(torch.empty(0), {})
"""In place of a trial's expected answer, where that must not be seen or is not known yet."""


@dataclass(frozen=True)
class Trial:
    """The numbers of a case, all of them drawn, and the reference's answer to them.

    Args:
        rung: its name.
        parameters: under TransformerLens's names, as `answer` and our layers' ``load_state_dict`` take them.
        given: the input.
        cotangent: factor of each entry of the output, before the backward pass.
        expected: the reference's answer; without gradients if they are not wanted.
        before: inputs that the same instance of the layer is called with first.
    """

    rung: str
    case: Case
    dtype: torch.dtype
    parameters: Mapping[str, Tensor]
    given: Tensor
    cotangent: Tensor
    expected: Answer = UNANSWERED
    before: tuple[Tensor, ...] = ()

    @property
    def config(self) -> GPT2Config:
        """The case's, or the nearest that the reference can build."""
        return self.case.config


def make_trial(rung: Rung, reference: Reference, case: Case, dtype: torch.dtype, *, gradients: bool = True) -> Trial:
    """Draw the numbers of a case, and run the reference on them: forwards, and backwards if gradients are wanted."""
    generator = torch.Generator().manual_seed(case.seed)
    config = reference.adapt(case.config)
    case = dataclasses.replace(case, config=config)
    theirs = reference.build(config, dtype)
    randomize(theirs, generator)
    parameters = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    given = rung.input(case, dtype, generator)
    leaf = given.clone().requires_grad_(given.is_floating_point())
    # Every layer is new, and its shapes would be checked anew.
    with typecheck(False), torch.set_grad_enabled(gradients):
        output = reference.call(theirs, leaf)
    cotangent = torch.randn(output.shape, dtype=torch.float64, generator=generator).to(dtype)
    # Divided, so that a gradient's size, and with it its rounding error, does not grow with the number of outputs.
    cotangent /= math.sqrt(cotangent.numel() / case.batch / case.seq)
    expected: dict[str, Tensor] = {}
    if gradients:
        backward(output, cotangent)
        expected = _lens_names(reference.parameters(config, _gradients(theirs)))
        if leaf.grad is not None:
            expected["input"] = leaf.grad
    return Trial(
        rung=rung.name,
        case=case,
        dtype=dtype,
        parameters=_lens_names(reference.parameters(config, parameters)),
        given=given,
        cotangent=cotangent,
        expected=Answer(output.detach(), expected),
    )


def altered(trial: Trial, *, given: Tensor | None = None, **parameters: Tensor | float) -> Trial:
    """Return the trial with another input, or with parameters of other values (by name, or its last part).

    The expected answer is our own layer's; it has gradients if the trial's has.
    """
    changed = dict(trial.parameters)
    for name, value in parameters.items():
        for each in [each for each in changed if each == name or each.endswith("." + name)]:
            changed[each] = torch.zeros_like(changed[each]) + value
    trial = dataclasses.replace(trial, parameters=changed, given=trial.given if given is None else given)
    own, gradients = rung(trial.rung).build(trial.config, trial.dtype), bool(trial.expected.gradients)
    return dataclasses.replace(trial, expected=answer(own, trial, gradients=gradients))


def answer(layer: nn.Module, trial: Trial, *, gradients: bool = True) -> Answer:
    """Return the answer of a layer that keeps its parameters as ours or as TransformerLens does.

    Args:
        gradients: run the backward pass too.

    Raises:
        RuntimeError: its parameters are not the trial's.
    """
    layer.eval().load_state_dict(dict(trial.parameters))
    leaf = trial.given.clone().requires_grad_(trial.given.is_floating_point())
    with typecheck(False), torch.set_grad_enabled(gradients):
        output = layer(leaf)
    if output.requires_grad:  # a layer that cuts the graph has no gradients
        backward(output, trial.cotangent)
    found = {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}
    found = _lens_names(found)
    if leaf.grad is not None:
        found["input"] = leaf.grad
    return Answer(output.detach(), found)


def distance(found: Answer, expected: Answer) -> tuple[float, float]:
    """Return the largest absolute difference of the output, and of any gradient; one that is missing is infinitely far.

    Example:
        >>> right = Answer(torch.zeros(2), {"w": torch.ones(3)})
        >>> distance(Answer(torch.ones(2), {}), right)
        (1.0, inf)
    """
    gradients = (difference(found.gradients.get(name), right) for name, right in expected.gradients.items())
    return difference(found.output, expected.output), max(gradients, default=0.0)


def compare(
    rung: Rung, reference: Reference, case: Case, dtype: torch.dtype, build: Build | None = None
) -> tuple[float, float]:
    """Run a layer and a reference with the same numbers, forwards and backwards, and return their `distance`.

    Args:
        build: the layer to judge, in place of ours; its ``load_state_dict`` must take our layer's or TransformerLens's
            names.
    """
    trial = make_trial(rung, reference, case, dtype)
    return distance(answer((build or rung.build)(trial.config, dtype), trial), trial.expected)


def check(rung: Rung, reference: Reference, case: Case, dtype: torch.dtype, build: Build | None = None) -> None:
    """`compare`, and raise an error that names what is too far off.

    Raises:
        AssertionError: the output, or in float64 a gradient, is further from the reference's than the rung allows.
    """
    trial = make_trial(rung, reference, case, dtype)
    found, limit = answer((build or rung.build)(trial.config, dtype), trial), rung.tolerance(dtype)
    what = f"{rung.name} differs from {reference.library}'s in {dtype}"
    off = difference(found.output, trial.expected.output)
    assert off <= limit, f"{what}: output by {off:.1e}, at most {limit:.0e}; {case}"
    if dtype == torch.float64:
        for name, right in trial.expected.gradients.items():
            off = difference(found.gradients.get(name), right)
            assert off <= limit, f"{what}: gradient of {name} by {off:.1e}, at most {limit:.0e}; {case}"


def cases(seed: int, number: int) -> Iterator[Case]:
    """The same ``number`` of cases for the same seed."""
    source = random.Random(seed)
    return (draw_case(source) for _ in range(number))


def _lens_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters or gradients of ours or of TransformerLens's under the latter's names, less its two constants."""
    named = {}
    for name, tensor in tensors.items():
        prefix, last = name[: name.rfind(".") + 1], name[name.rfind(".") + 1 :]
        if last in ("W_QKV", "b_QKV"):
            parts = tensor.unbind(tensor.ndim - 3)
            if last == "W_QKV":
                parts = [part.transpose(0, 1) for part in parts]
            named |= {f"{prefix}{last[0]}_{letter}": part for letter, part in zip("QKV", parts, strict=True)}
        elif last not in ("mask", "IGNORE"):
            named[name] = tensor
    return named


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradients under the names of the state dict; what is no parameter there (constants) stays as it is."""

    def gradient(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return tensor
        return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad

    return {name: gradient(tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
