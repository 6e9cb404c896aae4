"""GPT-2's quantities on one trial, in the order of the formula: the steps of a right layer."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...assembly.config import GPT2Config
from ..rungs import Trial

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Quantity:
    """A step of the formula.

    Args:
        key: its name, such as ``blocks.0.attn.scores``.
        words: the same in words.
        value: its numbers; axes as in the formula.
        visible: of masked scores, where a query may look: elsewhere any very negative number will do.
        step: whether it is one that hints should name (a projection before its bias is not).
    """

    key: str
    words: str
    value: Tensor
    visible: Tensor | None = None
    step: bool = True


def part_rung(part: str) -> str | None:
    """Return the rung of a part by its name in our model: ``blocks.0.attn`` is attention."""
    known = {"ln1": "layer-norm", "ln2": "layer-norm", "ln_final": "layer-norm", "attn": "attention", "mlp": "mlp"}
    known |= {"embed": "embed", "pos_embed": "pos-embed", "unembed": "unembed"}
    return known.get(part.rpartition(".")[2]) or ("block" if re.fullmatch(r"blocks\.\d+", part) else None)


def quantities(trial: Trial) -> list[Quantity]:
    """Return every quantity of a trial's rung, the layer's input first and its output last."""
    config, p, x = trial.config, trial.parameters, trial.given
    if trial.rung == "embed":
        return [Quantity("output", "the output", p["W_E"][x])]
    if trial.rung == "pos-embed":
        return [Quantity("output", "the output", p["W_pos"][: x.shape[1]].expand(*x.shape, -1))]
    if trial.rung == "unembed":
        logits = x @ p["W_U"]
        bias = p.get("b_U", torch.zeros(()).to(logits))
        return [
            Quantity("input", "the input", x),
            Quantity("logits", "the logits without b_U", logits, step=False),
            Quantity("output", "the output", logits + bias),
        ]
    if trial.rung == "model":
        return list(_model(p, x, config))
    steps = {"layer-norm": _layer_norm, "attention": _attention, "mlp": _mlp, "block": _block}[trial.rung]
    return [Quantity("input", "the input", x), *steps(p, "", "", x, config)]


# The steps of each layer: its parameters' names begin with ``of``, and words for its steps end with ``where``.


def _layer_norm(
    p: Parameters, of: str, where: str, x: Tensor, config: GPT2Config, output: str = "the output"
) -> Iterator[Quantity]:
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    scale = (variance + config.layer_norm_eps).sqrt()
    normalised = (x - mean) / scale
    yield Quantity(f"{of}mean", f"the mean{where}", mean)
    yield Quantity(f"{of}centred", f"the input less its mean{where}", x - mean)
    yield Quantity(f"{of}squares", f"the squares of the input less its mean{where}", (x - mean).pow(2), step=False)
    yield Quantity(f"{of}variance", f"the variance{where}", variance)
    yield Quantity(f"{of}variance+eps", f"the variance plus eps{where}", variance + config.layer_norm_eps)
    yield Quantity(f"{of}scale", f"the standard deviation{where}", scale)
    yield Quantity(f"{of}1/scale", f"one over the standard deviation{where}", 1 / scale, step=False)
    gained = (x - mean) * p[f"{of}w"]
    yield Quantity(f"{of}centred w", f"the input less its mean, times w{where}", gained, step=False)
    yield Quantity(f"{of}normalised", f"the normalised vector{where}", normalised)
    yield Quantity(f"{of}gained", f"the normalised vector times w{where}", normalised * p[f"{of}w"])
    yield Quantity(f"{of}output", output, normalised * p[f"{of}w"] + p[f"{of}b"])


def _attention(
    p: Parameters, of: str, where: str, x: Tensor, config: GPT2Config, output: str = "the output"
) -> Iterator[Quantity]:
    made = {}
    for letter, words in (("Q", "queries"), ("K", "keys"), ("V", "values")):
        bare = torch.einsum("bsm,nmh->bsnh", x, p[f"{of}W_{letter}"])
        made[letter] = bare + p[f"{of}b_{letter}"]
        yield Quantity(f"{of}{letter}0", f"the {words} without their bias{where}", bare, step=False)
        yield Quantity(f"{of}{letter}", f"the {words}{where}", made[letter])
    q, k, v = (made[letter] for letter in "QKV")
    # Many scale queries or keys, or both by its root, in place of scores.
    for letter, words in (("Q", "queries"), ("K", "keys")):
        for name, power in (("scaled", 1.0), ("half scaled", 0.5)):
            scale = config.attn_scale(0) ** power
            yield Quantity(f"{of}{letter} {name}", f"the scaled {words}{where}", made[letter] * scale, step=False)
            bare = (made[letter] - p[f"{of}b_{letter}"]) * scale
            yield Quantity(f"{of}{letter}0 {name}", f"the scaled {words} without their bias{where}", bare, step=False)
    raw = torch.einsum("bqnh,bknh->bnqk", q, k)
    scores = raw * config.attn_scale(0)
    visible = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    pattern = scores.masked_fill(~visible, -math.inf).softmax(-1)
    z = torch.einsum("bnqk,bknh->bqnh", pattern, v)
    each = torch.einsum("bqnh,nhm->bqnm", z, p[f"{of}W_O"])
    out = each.sum(2)
    yield Quantity(f"{of}raw", f"the scores q·k{where}", raw)
    yield Quantity(f"{of}scores", f"the scaled scores{where}", scores)
    yield Quantity(f"{of}masked", f"the masked scores{where}", scores, visible=visible)
    yield Quantity(f"{of}masked raw", f"the masked unscaled scores{where}", raw, visible=visible, step=False)
    yield Quantity(f"{of}pattern", f"the attention pattern{where}", pattern)
    yield Quantity(f"{of}z", f"the gathered values z{where}", z)
    yield Quantity(f"{of}z W_O", f"each head's output{where}", each, step=False)
    yield Quantity(f"{of}projected", f"the output without b_O{where}", out)
    yield Quantity(f"{of}output", output, out + p[f"{of}b_O"])


def _mlp(
    p: Parameters, of: str, where: str, x: Tensor, config: GPT2Config, output: str = "the output"
) -> Iterator[Quantity]:
    bare = x @ p[f"{of}W_in"]
    pre = bare + p[f"{of}b_in"]
    if config.act_fn == "gelu_new":
        cube, inner = pre**3, pre + 0.044715 * pre**3
        root = math.sqrt(2 / math.pi)
        for words, value in (
            ("half the hidden layer", 0.5 * pre),
            ("x² in GELU", pre**2),
            ("x³ in GELU", cube),
            ("0.044715 x³ in GELU", 0.044715 * cube),
            ("0.044715 x in GELU", 0.044715 * pre),
            ("sqrt(2/pi) x in GELU", root * pre),
            ("0.044715 x² in GELU", 0.044715 * pre**2),
            ("1 + 0.044715 x² in GELU", 1 + 0.044715 * pre**2),
            ("x + 0.044715 x³ in GELU", inner),
            ("sqrt(2/pi) (x + 0.044715 x³) in GELU", root * inner),
            ("tanh(…) in GELU", torch.tanh(root * inner)),
            ("1 + tanh(…) in GELU", 1 + torch.tanh(root * inner)),
        ):
            yield Quantity(f"{of}{words}", f"{words}{where}", value, step=False)
    post = {"gelu_new": lambda t: F.gelu(t, approximate="tanh"), "gelu": F.gelu, "relu": F.relu}[config.act_fn](pre)
    out = post @ p[f"{of}W_out"]
    yield Quantity(f"{of}pre0", f"the hidden layer before b_in{where}", bare, step=False)
    yield Quantity(f"{of}pre", f"the hidden layer before the activation{where}", pre)
    yield Quantity(f"{of}post", f"the hidden layer after the activation{where}", post)
    yield Quantity(f"{of}projected", f"the output without b_out{where}", out)
    yield Quantity(f"{of}output", output, out + p[f"{of}b_out"])


def _block(
    p: Parameters, of: str, where: str, x: Tensor, config: GPT2Config, output: str = "the output"
) -> Iterator[Quantity]:
    first = list(_layer_norm(p, f"{of}ln1.", f" of ln1{where}", x, config, f"the output of ln1{where}"))
    attn = list(_attention(p, f"{of}attn.", where, first[-1].value, config, f"the output of attention{where}"))
    mid = x + attn[-1].value
    second = list(_layer_norm(p, f"{of}ln2.", f" of ln2{where}", mid, config, f"the output of ln2{where}"))
    mlp = list(_mlp(p, f"{of}mlp.", where, second[-1].value, config, f"the output of the MLP{where}"))
    yield from [*first, *attn]
    yield Quantity(f"{of}mid", f"the stream after attention{where}", mid)
    yield from [*second, *mlp]
    yield Quantity(f"{of}output", output, mid + mlp[-1].value)


def _model(p: Parameters, tokens: Tensor, config: GPT2Config) -> Iterator[Quantity]:
    embed, positions = p["embed.W_E"][tokens], p["pos_embed.W_pos"][: tokens.shape[1]]
    x = embed + positions
    yield Quantity("embed", "the token embedding", embed)
    yield Quantity("pos_embed", "the position embedding", positions)
    yield Quantity("start", "the stream before the blocks", x)
    for layer in range(config.n_layers):
        where = f" (block {layer})"
        steps = list(_block(p, f"blocks.{layer}.", where, x, config, f"the stream after block {layer}"))
        yield from steps
        x = steps[-1].value
    final = list(_layer_norm(p, "ln_final.", " of ln_final", x, config, "the output of ln_final"))
    yield from final
    W_U = p["unembed.W_U"] if "unembed.W_U" in p else p["embed.W_E"].T
    logits = final[-1].value @ W_U
    if "unembed.b_U" in p:
        yield Quantity("logits", "the logits without b_U", logits, step=False)
        logits = logits + p["unembed.b_U"]
    yield Quantity("output", "the output", logits)
