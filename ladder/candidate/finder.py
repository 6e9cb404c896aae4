"""Find which class of a file is which layer: by its name, by its parameters, and by who uses it."""

import contextlib
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...assembly.config import GPT2Config
from ..cases import has_one_head
from .aliases import CLASS_NAMES, canonical
from .building import Builder
from .calling import unknown_arguments
from .configuration import Refused, Sizes
from .fixed_sizes import fixed_sizes
from .layouts import Layout, Repeated, Unlearned, Unreadable
from .parameters import read
from .source import Loaded, one_line
from .without_gpu import OnCpu

# Sizes that are all different, with heads that fill the model.
_CONFIG = GPT2Config(d_model=18, n_heads=3, d_head=6, d_mlp=72, d_vocab=41, n_ctx=97, n_layers=2)
# What is tried if the name does not tell; in this order, since a block contains attention.
_BY_CONTENT = ("model", "block", "attention", "mlp", "layer-norm", "embed", "unembed")


# Kinds of layers that other models have; where a file has GPT-2's kind too, that one is meant.
_OTHERS = re.compile(r"group|gqa|mqa|rope|rotary|alibi|rms|post_?(ln|norm|layer_?norm)|cross|sparse|lora|moe", re.I)
_UNLEARNED = 98  # of a class without parameters, where GPT-2's layer has some
# How badly a class fits a rung, and its name: the parameters that it lacks (more if it is of another kind), whether it
# is unused, how early it stands.
_Fit = tuple[int, bool, int, str]


def find_layers(loaded: Loaded, chosen: Mapping[str, Any], only: str | None = None) -> dict[str, list[str]]:
    """Return, for each rung, the names of the classes that fit it, the best first.

    An adapter that bears the rung's name comes before any class: its author has written how the layer is to be read.

    Args:
        loaded: the source.
        chosen: values for what constructors ask for, by name.
        only: the one rung that is wanted. Classes with names of other rungs are then not built: they may hang.
    """
    namespace = vars(loaded.module)
    classes = loaded.classes
    fits: dict[str, list[_Fit]] = {}
    matched: set[str] = set()
    named: set[str] = set()
    unfit: dict[str, tuple[str, str]] = {}
    # By their names: the first rung that a name means and the class fits.
    for order, (name, cls) in enumerate(classes.items()):
        rungs = [rung for rung, pattern in CLASS_NAMES.items() if re.search(pattern, name, re.I)]
        rungs = _narrowed(rungs, name)
        may_be_block = only == "block" and rungs == ["model"]  # a GPT2Layer, a Decoder
        if only and rungs and only not in rungs and not may_be_block:
            matched.add(name)
            named.add(rungs[0])
            continue
        for rung in rungs:
            missing, why = _fits(cls, rung, namespace, chosen)
            used = _used(name, classes)
            # A class without parameters may be left over: it counts if it is used, asked for, or all that there is.
            if missing is None or (missing == _UNLEARNED and not (used or only == rung or len(classes) == 1)):
                unfit.setdefault(name, (rung, why))
            else:
                # Of several models the outermost, of other layers the one that is used.
                rank = missing + (25 if _OTHERS.search(name) else 0)
                fits.setdefault(rung, []).append((rank, used == (rung == "model"), -order, name))
                matched.add(name)
                break
    # By what they hold, those whose names mean nothing, for rungs that have no class yet.
    for order, (name, cls) in enumerate(classes.items()):
        if name in matched or re.search(CLASS_NAMES["pos-embed"], name, re.I):  # its parameters would fit other rungs
            continue
        for rung in _BY_CONTENT:
            if rung not in fits and rung not in named:
                missing, _ = _fits(cls, rung, namespace, chosen)
                if missing not in (None, _UNLEARNED):
                    fits[rung] = [(missing, True, -order, name)]
                    break
    found = {rung: [name for *_, name in sorted(fits[rung])] for rung in CLASS_NAMES if rung in fits}
    # Adapters come first; and where a rung is left without a class, the one that does not fit is named.
    for rung in CLASS_NAMES:
        for name in (rung.replace("-", "_"), rung.replace("-", "")):
            if _is_adapter(namespace.get(name)):
                found[rung] = [name, *[each for each in found.get(rung, []) if each != name]]
    tried = {name for names in found.values() for name in names}
    for name, (rung, why_not) in unfit.items():
        if name not in matched | tried and rung not in found and only in (None, rung):
            loaded.notes.append(f"{name} could not be tried as {rung}: {why_not}")
    left = [name for name in classes if name not in tried | unfit.keys() and not _is_part(name, classes)]
    if left and found and only is None:
        loaded.notes.append(f"not tried, as neither name nor parameters tell which layer it is: {', '.join(left)}")
    return {rung: found[rung] for rung in CLASS_NAMES if rung in found and only in (None, rung)}


def rungs_of(make: Callable[..., Any], name: str, namespace: dict[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    """Return the rungs that a class fits, the likeliest first."""
    by_name = _narrowed([rung for rung, pattern in CLASS_NAMES.items() if re.search(pattern, name, re.I)], name)
    by_name += [rung for rung in CLASS_NAMES if name.lower().replace("_", "-") == rung and rung not in by_name]
    if _is_adapter(make) and by_name:
        return by_name
    fits = {rung: _fits(make, rung, namespace, chosen)[0] for rung in dict.fromkeys([*by_name, *_BY_CONTENT])}
    found = [
        rung for rung, missing in fits.items() if missing is not None and (missing != _UNLEARNED or rung in by_name)
    ]
    return found or by_name


def _narrowed(rungs: list[str], name: str) -> list[str]:
    """Return the rungs that a name means: a TransformerBlock is no attention, and no model."""
    lower = name.lower()
    if "block" in rungs:  # or a layer that its author calls a block: an MLPBlock
        return ["block", *[rung for rung in ("attention", "mlp") if rung in rungs]]
    if "pos-embed" in rungs:
        return ["pos-embed"]
    if "unembed" in rungs:
        return ["model"] if lower.endswith("model") else ["unembed"]
    if "model" in rungs and len(rungs) > 1 and not re.search("gpt|model$|lm$", lower):
        rungs = [rung for rung in rungs if rung != "model"]
    return [rung for rung in rungs if not (rung == "attention" and "wrapper" in lower and len(rungs) > 1)]


def _fits(
    make: Callable[..., Any], rung: str, namespace: dict[str, Any], chosen: Mapping[str, Any]
) -> tuple[int | None, str]:
    """Return how many parameters a class lacks on a rung; if it cannot be built or read there, None and the reason."""
    state = torch.get_rng_state()
    try:
        with OnCpu():
            asked: set[str] = set()
            config = _with_heads(chosen)
            layer = Builder(make, rung, namespace).build(Sizes(config, chosen, asked))
            config = replace(config, n_heads=1) if has_one_head(asked) else config
            if not isinstance(layer, nn.Module):
                return None, "it makes no nn.Module"
            if rung == "layer-norm" and (more := unknown_arguments(layer)):
                return None, f"its forward asks for {', '.join(more)} beside its input"
            try:
                missing = len(_read(layer, rung, config, asked, chosen)[0].missing)
            except Unlearned as error:
                return _UNLEARNED if _gives_vectors(layer) else None, str(error)
            return (missing if _runs(layer, rung, config) else missing + 50), ""
    except Unreadable as error:
        # One block many times over is a fault to report, and no reason to look elsewhere.
        return 99 if isinstance(error, Repeated) else None, str(error)
    except Refused as error:
        return None, f"it {error}"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return None, f"to build it raises {one_line(error)}"
    finally:
        torch.set_rng_state(state)


def _read(
    layer: nn.Module, rung: str, config: GPT2Config, asked: set[str], chosen: Mapping[str, Any]
) -> Sequence[Layout]:
    try:
        return read(layer, rung, config, asked)
    except Unlearned:
        raise
    except Unreadable:
        if not (fixed := fixed_sizes(layer, rung, config, asked, chosen)):
            raise
        return read(layer, rung, replace(config, **fixed), asked)


def _with_heads(chosen: Mapping[str, Any]) -> GPT2Config:
    """Return the sizes that classes are built with, with the number of heads that the user has chosen."""
    heads = next((n for name, n in chosen.items() if canonical(name) == "n_heads" and isinstance(n, int)), 0)
    if not heads:
        return _CONFIG
    width = heads * _CONFIG.d_head
    return replace(_CONFIG, n_heads=heads, d_model=width, d_mlp=4 * width)


def _runs(layer: nn.Module, rung: str, config: GPT2Config) -> bool:
    tokens = rung in ("embed", "pos-embed", "model")
    given = torch.zeros(2, 5, dtype=torch.long) if tokens else torch.zeros(2, 5, config.d_model)
    try:
        with torch.no_grad():
            output = layer.eval()(given)
        output = output[0] if isinstance(output, tuple) and output else output
        logits = getattr(output, "logits", output)
        return rung != "model" or not isinstance(logits, torch.Tensor) or logits.shape[-1] == config.d_vocab
    except TypeError:  # it needs a mask, say
        return True
    except (Exception, SystemExit):  # a layer that calls exit() is still a layer
        return False


def _gives_vectors(layer: nn.Module) -> bool:
    """Return whether a layer gives a vector for each position: of positions' numbers, others may make vectors."""
    for given in (torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, _CONFIG.d_model)):
        with contextlib.suppress(Exception, SystemExit), torch.no_grad():
            output = layer.eval()(given)
            output = output[0] if isinstance(output, tuple) else output
            if output.is_floating_point() and output.shape[-2:] == (5, _CONFIG.d_model):
                return True
    return False


def _is_part(name: str, classes: Mapping[str, type]) -> bool:
    """Return whether another class of the file uses a class, or is derived from it."""
    others = [cls for other, cls in classes.items() if other != name]
    codes = [getattr(method, "__code__", None) for cls in others for method in vars(cls).values()]
    used = set().union(*[_names(code) for code in codes if code is not None])
    return name in used or any(issubclass(cls, classes[name]) for cls in others)


def _names(code: types.CodeType) -> set[str]:
    """Return the names that code looks up, also in its comprehensions and inner functions."""
    inner = (each for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _used(name: str, classes: Mapping[str, type]) -> bool:
    """Return whether a block or a model of the file uses a class."""
    for other, cls in classes.items():
        if other == name or not re.search(f"{CLASS_NAMES['block']}|{CLASS_NAMES['model']}", other, re.I):
            continue
        for method in vars(cls).values():
            code = getattr(method, "__code__", None)
            if code is not None and name in code.co_names:
                return True
    return False


def _is_adapter(value: Any) -> bool:
    if not inspect.isfunction(value):
        return False
    arguments = [each for each in inspect.signature(value).parameters.values() if each.default is each.empty]
    return len(arguments) == 2
