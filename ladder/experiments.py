"""Controlled experiments on a layer that is only known by its answers: what is wrong with it, and where it begins.

Parameters and inputs are chosen so that a part of the formula stands alone (no biases, one position, an MLP that gives
nothing) or can be read off the output (an activation, an attention pattern).
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..assembly.config import GPT2Config
from .numbers import Answer, difference
from .rungs import Case, Trial, answer, make_trial

Respond = Callable[[Trial], Answer | None]
Taps = Callable[[Trial], Mapping[str, Tensor]]

# Of the largest entry, in float64. Rounding is some hundred times smaller; the least difference between two mistakes in
# the catalogue (a mask that fills 1e-9 for one that fills 0) ten times larger.
_ROUNDING = 1e-11


def close(a: Tensor, b: Tensor) -> bool:
    """Equal to rounding, NaN where the other has NaN."""
    size = max(1.0, b.nan_to_num(posinf=0.0, neginf=0.0).abs().max().item())
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, 0.0, _ROUNDING * size, equal_nan=True)


def same(a: Answer, b: Answer) -> bool:
    """Whether two answers are equal to rounding, gradients too; a missing gradient counts as one of zeros."""
    if not close(a.output, b.output):
        return False
    if a.output.isnan().any():  # NaN in the output spreads over the gradients by ways that mean nothing
        return True
    for name in a.gradients.keys() | b.gradients.keys():
        one, other = a.gradients.get(name), b.gradients.get(name)
        given = other if one is None else one
        assert given is not None
        zero = torch.zeros_like(given)
        if not close(zero if one is None else one, zero if other is None else other):
            return False
    return True


def is_right(found: Answer, trial: Trial) -> bool:
    """Whether an answer is the expected one, and no gradient is missing."""
    return same(found, trial.expected) and found.gradients.keys() >= trial.expected.gradients.keys()


def altered(trial: Trial, *, given: Tensor | None = None, **parameters: Tensor | float) -> Trial:
    """The trial with another input, or with parameters of other values (by name, or its last part; ``__`` for ``.``).

    The expected answer is our own layer's, which the ladder has proved.
    """
    changed = dict(trial.parameters)
    for name, value in parameters.items():
        names = [each for each in changed if each == name or each.endswith("." + name)]
        for each in names:
            changed[each] = torch.zeros_like(changed[each]) + value
    trial = replace(trial, parameters=changed, given=trial.given if given is None else given)
    return replace(trial, expected=answer(trial.rung.build(trial.config, trial.dtype), trial))


def sized(config: GPT2Config, **sizes: int) -> GPT2Config:
    """The configuration with other sizes; ``d_mlp`` stays ``4 * d_model`` where it was: the layer may count on it."""
    changed = replace(config, **sizes)
    four = config.d_mlp == 4 * config.d_model and "d_mlp" not in sizes
    return replace(changed, d_mlp=4 * changed.d_model) if four else changed


def resized(trial: Trial, **sizes: int) -> Trial:
    """A trial of the same seed with other sizes (``batch``, ``seq``, or of the configuration)."""
    case = trial.case
    outer = {name: sizes.pop(name) for name in ("batch", "seq") if name in sizes}
    case = replace(case, **outer, config=sized(case.config, **sizes))
    return make_trial(trial.rung, trial.rung.references[0], case, trial.dtype)


def shrink(case: Case, fails: Callable[[Case], bool], square: bool) -> Case:
    """The smallest case that still fails, one size after another; ``square`` keeps ``d_model = n_heads * d_head``.

    ``d_mlp = 4 * d_model`` is kept where it is so.
    """

    def smaller(case: Case, name: str, size: int) -> Case:
        if name in ("batch", "seq"):
            return replace(case, **{name: size})
        sizes = {name: size}
        if square:
            heads = {"n_heads": case.config.n_heads, "d_head": case.config.d_head} | sizes
            sizes["d_model"] = heads["n_heads"] * heads["d_head"]
        return replace(case, config=sized(case.config, **sizes))

    least = {"d_model": 2, "d_head": 1 + square, "d_vocab": 2}
    names = ["n_layers", "batch", "seq", "n_heads", "d_head", "d_vocab", "n_ctx"]
    if not square:
        names.append("d_model")
    if case.config.d_mlp != 4 * case.config.d_model:
        names.append("d_mlp")
    for name in names:
        now = getattr(case, name) if name in ("batch", "seq") else getattr(case.config, name)
        start = max(case.seq, 1) if name == "n_ctx" else least.get(name, 1)
        for size in range(start, now):
            if fails(candidate := smaller(case, name, size)):
                case = candidate
                break
    return case


def inner(layer: nn.Module, trial: Trial) -> dict[str, Tensor]:
    """What every submodule and tap of one of our layers gives in a trial, in the order of the formula."""
    layer.eval().load_state_dict(dict(trial.parameters))
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, out: found.update({name: out.detach()})

    handles = [module.register_forward_hook(keep(name)) for name, module in layer.named_modules() if name]
    with torch.no_grad():
        layer(trial.given)
    for handle in handles:
        handle.remove()
    return found


# How others call what we call otherwise; applied to each part of a dotted name.
_ALIASES = {
    "ln1": r"ln_?1|(layer_?)?norm_?1|input_layernorm|attn_norm",
    "ln2": r"ln_?2|(layer_?)?norm_?2|post_attention_layernorm|mlp_norm",
    "ln_final": r"ln_?f(inal)?|final_(layer_?)?norm|norm_f",
    "attn": r"attn|attention|self_attn|self_attention|sa|mha",
    "mlp": r"mlp|ffn?|feed_?forward|ffwd",
    "embed": r"w?te|(token|tok|word)_?emb(ed(ding)?s?)?(_table)?|embed(dings?)?|emb",
    "pos_embed": r"w?pe|pos(ition)?(al)?_?emb(ed(ding)?s?)?(_table)?",
    "unembed": r"lm_head|unembed|head|out_proj_vocab",
    "blocks": r"blocks|h|layers",
    "q": r"q|quer(y|ies)|q_proj|w_?q",
    "k": r"k|keys?|k_proj|w_?k",
    "v": r"v|values?|v_proj|w_?v",
    "attn_scores": r"(attn_|attention_)?scores|(attn_)?logits",
    "pattern": r"(attn_|attention_)?(pattern|weights|probs)|softmax|att",
    "z": r"z",
    "pre": r"pre|c_fc|fc_?1|w_in|up_proj",
    "post": r"post|act(ivation)?|gelu|act_fn",
}
_OURS = [(re.compile(rf"(hook_)?({pattern})", re.IGNORECASE), ours) for ours, pattern in _ALIASES.items()]


def our_name(name: str) -> str:
    """The name that we would give to somebody else's submodule or hook."""
    parts = (
        next((ours for known, ours in _OURS if known.fullmatch(part)), part.removeprefix("hook_"))
        for part in name.split(".")
    )
    return ".".join(part for part in parts if part not in ("transformer", "model"))


# What the taps and submodules are, in words.
_WORDS = {
    "q": "the queries",
    "k": "the keys",
    "v": "the values",
    "attn_scores": "the scores",
    "pattern": "the pattern",
    "z": "z, what the heads gather",
    "pre": "the hidden layer before the activation",
    "post": "the hidden layer after the activation",
    "ln1": "ln1",
    "attn": "attention's output",
    "resid_pre": "the residual stream before the block",
    "resid_mid": "the residual stream after attention",
    "resid_post": "the residual stream after the block",
    "ln2": "ln2",
    "mlp": "the MLP's output",
    "embed": "the embedding",
    "pos_embed": "the position embedding",
    "ln_final": "the final layer norm",
    "unembed": "the output projection",
}


def first_tap(trial: Trial, taps: Mapping[str, Tensor]) -> str | None:
    """The first of a layer's inner values, in the order of the formula, that is not as it should be."""
    theirs = {our_name(name): (name, value) for name, value in taps.items()}
    for path, right in inner(trial.rung.build(trial.config, trial.dtype), trial).items():
        ours = our_name(path)
        if ours not in theirs:
            continue
        name, value = theirs[ours]
        if value.shape != right.shape and value.numel() == right.numel() and right.ndim == 4:
            value = value.reshape(right.shape) if value.ndim == 3 else value.transpose(1, 2)
        if value.shape != right.shape:
            continue
        if ours.endswith("attn_scores"):  # whatever number masks, if it is low enough
            value, right = value.clamp(min=-1e4), right.clamp(min=-1e4)
        if not close(value.to(right.dtype), right):
            head, _, last = ours.rpartition(".")
            what = _WORDS.get(last, last) + (f", {head}" if head else "")
            return f"The first value inside that differs is {name} ({what}). {_example(value, right)}"
    return None


def _example(found: Tensor, right: Tensor) -> str:
    """The entry that is furthest off, in words."""
    off = (found.to(right.dtype) - right).abs().nan_to_num(nan=float("inf"))
    where = [int(i) for i in torch.unravel_index(off.argmax(), off.shape)]
    return f"At {where} it is {found[tuple(where)]:.6g}, and should be {right[tuple(where)]:.6g}."


class Experiments:
    """Asks a layer about altered trials.

    Args:
        respond: the layer's answer to a trial; None where it gave none.
        trial: one that it fails.
    """

    def __init__(self, respond: Respond, trial: Trial) -> None:
        self.respond = respond
        self.trial = trial

    def right(self, trial: Trial) -> bool:
        """Whether the layer's output is right there."""
        found = self.respond(trial)
        return found is not None and close(found.output, trial.expected.output)

    def findings(self) -> Iterator[str]:
        """What the experiments show, in the order in which it matters."""
        if self.right(self.trial):
            yield from self._gradients()
            return
        found = self.respond(self.trial)
        off = difference(found.output, self.trial.expected.output) if found else math.inf
        if off < 1e-4:
            yield (
                f"It is off by {off:.1e} at most: a small constant is wrong, such as eps, or part of it is computed in "
                "float32."
            )
        yield from self._leaks()
        yield from {
            "embed": self._table,
            "pos-embed": self._table,
            "layernorm": self._layer_norm,
            "attention": self._attention,
            "mlp": self._mlp,
            "block": self._block,
            "unembed": self._unembed,
            "model": self._model,
        }[self.trial.rung.name]()
        yield from self._sizes()

    def _gradients(self) -> Iterator[str]:
        found = self.respond(self.trial)
        assert found is not None
        expected = self.trial.expected.gradients
        missing = [name for name in expected if name not in found.gradients]
        wrong = [n for n, right in expected.items() if n in found.gradients and not close(found.gradients[n], right)]
        if missing:
            yield f"The output is right, but {_listed(missing)} got no gradient: unused, or cut from the graph."
        if any(name.endswith("b_K") for name in missing):
            yield "(b_K cannot show in the output: it moves all of a query's scores alike. Add it all the same.)"
        if wrong:
            yield (
                f"The output is right, but the gradient of {_listed(wrong)} is not: something on its way was detached "
                "(.detach(), .data, no_grad)."
            )

    def _leaks(self) -> Iterator[str]:
        """Sequences must not see one another, nor positions the future; in a layer by itself, not even the past."""
        trial, name = self.trial, self.trial.rung.name
        before = self.respond(trial)
        if before is None or before.output.shape[:2] != trial.given.shape[:2]:
            return
        if trial.case.batch > 1:
            after = self.respond(altered(trial, given=_changed(trial, (slice(1), slice(None)))))
            if after is not None and not close(after.output[1:], before.output[1:]):
                yield (
                    "Sequences of the batch see one another: changing the first changes the output of the others. Look "
                    "for a softmax, a mean or a reshape over the batch axis."
                )
        if trial.case.seq > 1 and name not in ("pos-embed",):
            after = self.respond(altered(trial, given=_changed(trial, (slice(None), slice(-1, None)))))
            if after is not None and not close(after.output[:, :-1], before.output[:, :-1]):
                mixing = name in ("attention", "block", "model")
                yield "The future is seen: changing the last position changes the output of earlier ones. " + (
                    "Look at the causal mask, and at reshapes that mix positions with heads."
                    if mixing
                    else "This layer must treat each position alone; look at the axis of each mean or reshape."
                )

    def _sizes(self) -> Iterator[str]:
        case = self.trial.case
        if self.trial.rung.name != "attention" and case.seq > 1 and self.right(resized(self.trial, seq=1)):
            yield "With a single position it is right."
        if case.batch > 1 and self.right(resized(self.trial, batch=1)):
            yield "With a batch of one it is right."

    def _table(self) -> Iterator[str]:
        """Which row each token or position got."""
        found = self.respond(self.trial)
        if found is None or found.output.shape != self.trial.expected.output.shape:
            return
        table = next(iter(self.trial.parameters.values()))
        for where in itertools.product(range(self.trial.case.batch), range(self.trial.case.seq)):
            row, right = found.output[where], self.trial.expected.output[where]
            if close(row, right):
                continue
            index = int(self.trial.given[where]) if self.trial.rung.name == "embed" else where[1]
            what = "token" if self.trial.rung.name == "embed" else "position"
            same_row = [i for i, each in enumerate(table) if close(row, each)]
            ratio = row / right
            if same_row:
                yield f"{what.capitalize()} {index} gets row {same_row[0]} of the table, not row {index}."
            elif close(ratio, ratio[:1].expand_as(ratio)):
                yield f"{what.capitalize()} {index} gets its own row times {ratio[0]:.6g}."
            else:
                yield f"{what.capitalize()} {index} gets a vector that is no row of the table."
            return

    def _layer_norm(self) -> Iterator[str]:
        plain = altered(self.trial, w=1.0, b=0.0)
        found = self.respond(plain)
        if found is None or found.output.shape != plain.expected.output.shape:
            return
        if close(found.output, plain.expected.output):
            yield "With w = 1 and b = 0 the output is right: look at how w and b enter, n * w + b."
            return
        n, right = found.output[0, 0], plain.expected.output[0, 0]
        yield (
            f"With w = 1 and b = 0, the output at position 0 has mean {abs(n.mean()):.4f} (should be 0) and mean "
            f"square {n.pow(2).mean():.6f} (should be {right.pow(2).mean():.6f})."
        )
        centred = altered(plain, given=plain.given - plain.given.mean(-1, keepdim=True))
        if self.right(centred):
            yield "On inputs whose mean is 0 it is right: look at where the mean is subtracted."

    def _mlp(self) -> Iterator[str]:
        config = self.trial.config
        width = min(config.d_model, config.d_mlp)
        bare = altered(self.trial, b_in=0.0, b_out=0.0)
        points = torch.linspace(-3, 3, bare.given[..., 0].numel(), dtype=bare.dtype).view(bare.given.shape[:2])
        through = altered(
            bare,
            given=points[..., None].expand_as(bare.given),
            W_in=torch.eye(config.d_model, config.d_mlp, dtype=bare.dtype),
            W_out=torch.eye(config.d_mlp, config.d_model, dtype=bare.dtype),
        )
        found = self.respond(through)
        if found is not None and found.output.shape == through.expected.output.shape:
            mine, right = (each[..., :width] for each in (found.output, through.expected.output))
            if not close(mine, right):
                where = tuple(torch.unravel_index((mine - right).abs().nan_to_num(nan=1e9).argmax(), mine.shape))
                yield (
                    f"Without biases, and with identities for W_in and W_out, the output is the activation. At "
                    f"{points[where[:2]]:.4g} yours gives {mine[where]:.6g}; {config.act_fn} gives {right[where]:.6g}."
                )
                return
            yield f"The activation itself is right ({config.act_fn})."
        if self.right(bare):
            yield "With b_in = b_out = 0 it is right: look at the biases."
        elif self.right(altered(self.trial, b_in=0.0)):
            yield "With b_in = 0 it is right: look at where b_in is added."
        elif self.right(altered(self.trial, b_out=0.0)):
            yield "With b_out = 0 it is right: look at where b_out is added."

    def _unembed(self) -> Iterator[str]:
        if self.right(altered(self.trial, b_U=0.0)):
            yield "With b_U = 0 it is right: look at the bias."
            return
        found, twice = (
            self.respond(altered(self.trial, b_U=0.0)),
            altered(self.trial, b_U=0.0, given=2 * self.trial.given),
        )
        after = self.respond(twice)
        if found is not None and after is not None and not close(after.output, 2 * found.output):
            yield "Without b_U, twice the input does not give twice the logits: something is applied besides x @ W_U."

    def _attention(self) -> Iterator[str]:
        one = resized(self.trial, seq=1)
        if not self.right(one):
            yield (
                "With a single position it is wrong already. There every pattern is 1, so queries, keys and mask do "
                "not matter: look at the values, at how the heads are laid out, and at W_O."
            )
            if self.right(altered(one, b_Q=0.0, b_K=0.0, b_V=0.0, b_O=0.0)):
                yield "Without biases it is right there: look at b_V and b_O."
            elif self.trial.config.n_heads > 1 and self.right(self._one_head(one)):
                yield "With a single head it is right there: look at how the heads are split and joined."
            return
        yield "With a single position it is right, so values and W_O are: look at the scores, the mask and the softmax."
        uniform = altered(self.trial, W_Q=0.0, b_Q=0.0)
        if self.right(uniform):
            yield "With W_Q = b_Q = 0 (all scores 0) it is right, so mask and softmax are: look at q·k and its scale."
        elif self.right(altered(self.trial, b_Q=0.0, b_K=0.0, b_V=0.0, b_O=0.0)):
            yield "Without biases it is right: look at where they are added."
        elif self.trial.config.n_heads > 1 and self.right(self._one_head(self.trial)):
            yield "With a single head it is right: look at how the heads are split and joined."
        read = pattern_trial(self.trial)
        found = read_pattern(self.respond, read)
        if found is None:
            return
        right = read_right(read)
        if close(found, right):
            yield "The pattern, read through values chosen to show it, is right there: look at how values are gathered."
            return
        rows = found.sum(-1)
        if not close(rows, torch.ones_like(rows)):
            yield f"Read off the output, the pattern's rows do not sum to 1: those of head 0 to {_few(rows[0])}."
        if found.triu(1).abs().max() > 1e-9:
            yield "Read off the output, the pattern gives weight to the future."
        row = int((found - right).abs().nan_to_num(nan=1e9).amax(dim=(0, 2)).argmax())
        head = int((found - right)[:, row].abs().nan_to_num(nan=1e9).amax(dim=-1).argmax())
        yield (
            f"Read off the output, query {row} of head {head} looks with the weights {_few(found[head, row])}; they "
            f"should be {_few(right[head, row])}."
        )

    def _one_head(self, trial: Trial) -> Trial:
        config = trial.config
        square = config.d_model == config.n_heads * config.d_head
        return resized(trial, n_heads=1, **({"d_model": config.d_head} if square else {}))

    def _block(self) -> Iterator[str]:
        without_attention = altered(self.trial, W_O=0.0, b_O=0.0)
        without_mlp = altered(self.trial, W_out=0.0, b_out=0.0)
        if not self.right(altered(without_attention, W_out=0.0, b_out=0.0)):
            yield (
                "With W_O, b_O, W_out and b_out at 0, attention and MLP add nothing and the output must be the input. "
                "It is not: look at the residual connections."
            )
            return
        for silent, trial, part in (("MLP", without_mlp, "attention"), ("attention", without_attention, "MLP")):
            found = f"right: {part} and its norm are" if self.right(trial) else f"wrong: look at {part} and its norm"
            yield f"With the {silent} silenced (its last weights at 0) it is {found}."

    def _model(self) -> Iterator[str]:
        bare = altered(self.trial, W_O=0.0, b_O=0.0, W_out=0.0, b_out=0.0)
        if self.right(bare):
            yield "With blocks that add nothing it is right: embeddings, ln_final and unembed are. Look at the blocks."
            if self.trial.config.n_layers > 1 and self.right(resized(self.trial, n_layers=1)):
                yield "With a single block it is right: look at how the blocks follow one another."
            return
        yield "With blocks that add nothing it is wrong already: look at the embeddings, ln_final and unembed."
        if self.right(altered(bare, W_pos=0.0)):
            yield "With W_pos = 0 it is right: look at the position embedding."
        elif self.right(altered(bare, b_U=0.0)):
            yield "With b_U = 0 it is right: look at the output bias."


def _changed(trial: Trial, where: tuple[slice, slice]) -> Tensor:
    given = trial.given.clone()
    given[where] = (given[where] + 1) % trial.config.d_vocab if trial.rung.takes_tokens else given[where].flip(-1) + 0.5
    return given


def pattern_trial(trial: Trial) -> Trial:
    """An attention trial whose pattern can be read off the output: position j's value has one number, in channel j."""
    seq, heads = 6, 2
    sized = resized(trial, batch=1, seq=seq, n_ctx=seq, n_heads=heads, d_head=seq, d_model=heads * seq)
    eye = torch.eye(seq, dtype=trial.dtype)
    values = torch.zeros(heads, heads * seq, seq, dtype=trial.dtype)
    values[:, :seq] = torch.stack([eye, 2 * eye])  # different, so that heads in the wrong order show
    out = torch.stack([torch.cat([eye * (n == m) for m in range(heads)], dim=-1) for n in range(heads)])
    given = torch.cat([eye, torch.zeros_like(eye)], dim=-1)[None]
    weights = {name: 3 * sized.parameters[name] for name in ("W_Q", "W_K")}
    return altered(sized, given=given, W_V=values, W_O=out, b_V=0.0, b_O=0.0, **weights)


def read_pattern(respond: Respond, read: Trial) -> Tensor | None:
    """The pattern ``[n_heads query_pos key_pos]``; None where the layer's values are wrong too."""
    alone = replace(read, given=read.given[:, :1])
    alone = replace(alone, cotangent=read.cotangent[:, :1])
    alone = replace(alone, expected=answer(read.rung.build(read.config, read.dtype), alone))
    found, single = respond(read), respond(alone)
    if found is None or single is None or not close(single.output, alone.expected.output):
        return None
    if found.output.shape != read.expected.output.shape:
        return None
    return found.output[0].unflatten(-1, (2, -1)).transpose(0, 1) / torch.tensor([1.0, 2.0]).to(found.output).view(
        2, 1, 1
    )


def read_right(read: Trial) -> Tensor:
    """The right pattern of the same trial."""
    return inner(read.rung.build(read.config, read.dtype), read)["hook_pattern"][0]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _few(numbers: Tensor) -> str:
    return "[" + " ".join(f"{number:.3g}" for number in numbers.tolist()) + "]"
