"""Cases and trials for a layer, by what it reads of its configuration and what it lacks."""

import itertools
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .answers import Answer
from .rungs import RANGES, Case, Trial, altered, draw_case

# What writes into the residual stream.
_WRITING = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")
# GPT-2's own choices. Others are tried on a layer that reads the field of that name.
_GPT2: dict[str, tuple[str, Any]] = {
    "act_fn": ("act_fn", "gelu_new"),
    "scale": ("scale_attn_weights", True),
    "layer_norm_eps": ("layer_norm_eps", 1e-5),
}

# Draws a case: from a source of randomness, with a sequence of this length (default: the rungs' own).
Draw = Callable[..., Case]


def has_one_head(asked: frozenset[str] | set[str]) -> bool:
    """Return whether a layer that reads these fields is one head of any size: it cannot know of more."""
    return "d_head" in asked and not asked & {"n_heads", "config"}


def heads_fill_the_model(asked: frozenset[str], missing: frozenset[str]) -> bool:
    """Return whether a layer needs ``d_model = n_heads * d_head``: it reads no ``d_head``, or has no ``W_O``."""
    return "d_head" not in asked or any(name.endswith("W_O") for name in missing)


def drawing(asked: frozenset[str], missing: frozenset[str], fixed: Mapping[str, int] | None = None) -> Draw:
    """Return what draws cases for a layer that reads these fields and lacks these parameters.

    Args:
        fixed: sizes that the layer has in any case.
    """
    longest = (fixed or {}).get("n_ctx", math.inf)
    one_head = (fixed or {}).get("n_heads") == 1  # it may be as wide as the model
    tied = "unembed.W_U" in missing
    lacks = bool(missing & {"b_U", "unembed.b_U"})
    but = (asked | {"d_mlp"}) if "d_mlp" in asked and "ratio" not in asked else asked - {"d_mlp"}
    but -= {"d_head"} if heads_fill_the_model(asked, missing) else frozenset()

    def draw(source: random.Random, seq: tuple[int, int] = RANGES["seq"]) -> Case:
        while True:
            choices = {"n_heads": 1} if has_one_head(asked) else {}
            least, most = (int(min(length, longest)) for length in seq)
            case = draw_case(source, seq=(least, most))
            if fixed and "n_heads" in fixed:
                case = replace(case, config=replace(case.config, n_heads=fixed["n_heads"]))
            case = as_gpt2(case, but, tie_word_embeddings=tied, unembed_bias=not lacks, **choices)
            case = replace(case, config=replace(case.config, **(fixed or {})))
            config = case.config
            names = [name for name in RANGES if hasattr(config, name) and not (name == "d_head" and one_head)]
            sizes = [case.batch, case.seq, *(getattr(config, name) for name in names)]
            # So that no two axes can be taken for one another.
            if len(set(sizes)) == len(sizes) and config.d_mlp != 3 * config.d_model and case == with_other_tables(case):
                return case

    return draw


def as_gpt2(case: Case, but: frozenset[str], **choices: Any) -> Case:
    """Return the case with GPT-2's own choices, but for some fields, and with other choices."""
    changed = dict(value for name, value in _GPT2.items() if name not in but) | choices
    if "d_head" not in but:
        changed["d_model"] = case.config.n_heads * case.config.d_head
    if "d_mlp" not in but:
        changed["d_mlp"] = 4 * changed.get("d_model", case.config.d_model)
    return replace(case, config=replace(case.config, **changed))


def with_other_input(trial: Trial, place: Any) -> Tensor:
    """Return a trial's input with other numbers, or other tokens, at a place."""
    given = trial.given.clone()
    given[place] = -given[place] if given.is_floating_point() else (given[place] + 1) % trial.config.d_vocab
    return given


def with_other_tables(case: Case) -> Case:
    """Return the case with a vocabulary and a context that no two tables and matrices can be confused by."""
    config = case.config
    taken = {config.d_model, 3 * config.d_model, config.d_mlp}
    n_ctx = next(size for size in itertools.count(config.n_ctx) if size not in taken)
    d_vocab = next(size for size in itertools.count(config.d_vocab) if size not in {*taken, n_ctx})
    return replace(case, config=replace(config, n_ctx=n_ctx, d_vocab=d_vocab))


def small_stream(trial: Trial) -> Trial:
    """Return the trial with a residual stream so small that even the least eps counts."""
    small = {name: 1e-3 * value for name, value in trial.parameters.items() if name.endswith(_WRITING)}
    given = 1e-3 * trial.given if trial.given.is_floating_point() else trial.given
    return altered(trial, given=given, **small)


def with_scores(trial: Trial, score: float, others: float) -> Trial:
    """Return the trial with one attention score for all queries and keys; ``others`` adds others as small as that.

    What attention reads is 1 in its first dimension, and queries and keys are made of that alone.
    """
    changed: dict[str, Tensor] = {}
    for name, p in trial.parameters.items():
        last = name.rpartition(".")[2]
        if last in ("W_Q", "W_K"):
            side = (abs(score) / trial.config.attn_scale(0)) ** 0.5
            changed[name] = others * p
            changed[name][:, 0] = 0.0
            changed[name][:, 0, 0] = side if last == "W_Q" else -side
        elif last in ("b_Q", "b_K"):
            changed[name] = torch.zeros_like(p)
        elif "ln1." in name:
            changed[name] = p.clone()
            changed[name][0] = 0.0 if last == "w" else 1.0
    given = trial.given
    if trial.rung == "attention":
        given = given.clone()
        given[..., 0] = 1.0
    return altered(trial, given=given, **changed)


def without(found: Answer, missing: frozenset[str]) -> Answer:
    """Return the answer less the gradients of parameters that a layer does not have."""
    return replace(found, gradients={n: g for n, g in found.gradients.items() if in_any_block(n) not in missing})


def in_any_block(name: str) -> str:
    """Return the name of a parameter whatever block it is in: what one block lacks, all lack."""
    return re.sub(r"^blocks\.\d+\.", "blocks.#.", name)
