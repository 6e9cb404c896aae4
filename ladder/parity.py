"""Parity: every layer, then the whole model at full size, then every round trip, against both references."""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import weights
from ..assembly.config import GPT2Config
from ..assembly.model import GPT2
from . import references
from .answers import difference
from .own_layers import judge_in_order
from .results import Verdict
from .rungs import FLOAT64_TOLERANCE, RUNGS, rung

MODEL_TOLERANCE = {torch.float32: rung("model").float32, torch.float64: FLOAT64_TOLERANCE}


@dataclass(frozen=True)
class WholeModel:
    """A full-size model against a reference, in one dtype.

    Args:
        logits, loss: largest absolute difference of the logits; difference of the next-token cross-entropy.
        by_layer: largest absolute difference of the residual stream before the first block and after each.
        tolerance: how far logits and loss may be off.
    """

    reference: str
    dtype: str
    logits: float
    loss: float
    by_layer: list[float]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether logits and loss are within the tolerance."""
        return max(self.logits, self.loss) <= self.tolerance


@dataclass(frozen=True)
class RoundTrip:
    """Weights taken somewhere and back.

    Args:
        path: from where to where.
        error: largest absolute difference of a weight (or of a log-probability: see ``what``).
        tolerance: 0 where it must be bit for bit.
    """

    path: str
    what: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


@dataclass
class Parity:
    """All that ``make parity`` found."""

    weights: str
    shape: GPT2Config
    layers: list[Verdict] = field(default_factory=list)
    whole: list[WholeModel] = field(default_factory=list)
    round_trips: list[RoundTrip] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything was tried and is within its tolerance."""
        found = [*self.layers, *self.whole, *self.round_trips]
        return bool(self.layers and self.whole and self.round_trips) and all(each.passed for each in found)

    def as_json(self) -> dict[str, Any]:
        """Everything, for ``parity.json``."""

        def plain(found: Any) -> dict[str, Any]:
            return {**dataclasses.asdict(found), "passed": found.passed}

        return {
            "passed": self.passed,
            "weights": self.weights,
            "torch": torch.__version__,
            "shape": dataclasses.asdict(self.shape),
            "layers": [plain(each) for each in self.layers],
            "whole": [plain(each) for each in self.whole],
            "round_trips": [plain(each) for each in self.round_trips],
        }


def run(
    *,
    name_or_folder: str | None = None,
    shape: GPT2Config | None = None,
    number: int = 25,
    seed: int = 0,
    say: Callable[[str], None] = lambda step: None,
) -> Parity:
    """Try everything.

    Args:
        name_or_folder: real weights for the whole-model part (default: random ones).
        shape: the shape of the random ones (default: GPT-2's, with 124M parameters).
        number: cases for each layer and reference.
        say: called with each step as it begins.
    """
    if name_or_folder is None:
        hf: Any = references.random_hf(shape or GPT2Config.preset("gpt2"), seed)
        ours, described = weights.from_hf(hf), f"random, seed {seed}"
    else:
        say(f"reading {name_or_folder}")
        folder = weights.resolve(name_or_folder)
        hf, ours, described = references.read_hf(folder), weights.from_pretrained(folder), str(folder)
    found = Parity(described, ours.config)
    found.layers += judge_in_order(
        RUNGS,
        number=number,
        seed=seed,
        stop_at_failure=False,
        on_start=lambda rung, reference: say(f"layer {rung.name} against {reference.library}"),
    )
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(ours.config.d_vocab, (2, min(128, ours.config.n_ctx)), generator=generator)
    found.round_trips.extend(_round_trips(ours, hf, tokens, say))
    for dtype in (torch.float32, torch.float64):
        for library, whole in (("transformers", references.whole_hf), ("TransformerLens", references.whole_lens)):
            say(f"whole model against {library} in {str(dtype).removeprefix('torch.')}")
            found.whole.append(_whole(ours.to(dtype), library, whole(hf.to(dtype)), tokens))
    return found


@torch.inference_mode()
def _whole(ours: GPT2, library: str, run: references.Whole, tokens: Tensor) -> WholeModel:
    stream = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(ours.config.n_layers))]
    logits, cache = ours.run_with_cache(tokens, names_filter=stream)
    their_logits, their_stream = run(tokens)
    return WholeModel(
        reference=library,
        dtype=str(logits.dtype).removeprefix("torch."),
        logits=difference(logits, their_logits),
        loss=difference(_loss(logits, tokens), _loss(their_logits, tokens)),
        by_layer=[difference(cache[at], theirs) for at, theirs in zip(stream, their_stream, strict=True)],
        tolerance=MODEL_TOLERANCE[logits.dtype],
    )


def _loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def _round_trips(ours: GPT2, hf: Any, tokens: Tensor, say: Callable[[str], None]) -> Iterator[RoundTrip]:
    ours_state, hf_state = ours.state_dict(), hf.state_dict()

    def trip(path: str, one: dict[str, Tensor], other: dict[str, Tensor]) -> RoundTrip:
        say(f"round trip {path}")
        same_names = one.keys() == other.keys()
        return RoundTrip(
            path, "weights", max(difference(one[k], other[k]) for k in one) if same_names else float("inf"), 0.0
        )

    # In memory.
    yield trip("Hugging Face → ours → Hugging Face", hf_state, weights.to_hf(ours).state_dict())
    yield trip(
        "ours → HookedTransformer → ours",
        ours_state,
        weights.from_hooked_transformer(weights.to_hooked_transformer(ours)).state_dict(),
    )
    for conv1d in (True, False):
        theirs = weights.to_bridge_state_dict(ours, conv1d=conv1d)
        path = f"ours → TransformerBridge ({'bridged' if conv1d else 'native'}) → ours"
        yield trip(path, ours_state, weights.from_bridge(theirs, ours.config).state_dict())
    # Through files: whole, in shards, and pickled.
    with tempfile.TemporaryDirectory(prefix="gptladder-parity-") as scratch:
        folder = Path(scratch)
        weights.save_pretrained(ours, folder / "whole")
        yield trip("ours → folder → ours", ours_state, weights.from_pretrained(folder / "whole").state_dict())
        yield trip("ours → folder → transformers", hf_state, references.read_hf(folder / "whole").state_dict())
        size = sum(tensor.nbytes for tensor in ours_state.values())
        weights.save_pretrained(ours, folder / "shards", max_shard_size=size // 4)
        yield trip("ours → sharded folder → ours", ours_state, weights.from_pretrained(folder / "shards").state_dict())
        (folder / "bin").mkdir()
        torch.save(hf_state, folder / "bin" / "pytorch_model.bin")
        shutil.copy(folder / "whole" / "config.json", folder / "bin")
        yield trip(
            "transformers → pytorch_model.bin → ours", ours_state, weights.from_pretrained(folder / "bin").state_dict()
        )
    # Weights that TransformerLens has folded and centred: other numbers, the same probabilities.
    say("HookedTransformer's processed weights")
    processed = references.processed_lens(hf)
    ours_processed = weights.from_hooked_transformer(processed)
    error = difference(ours_processed(tokens).log_softmax(-1), processed(tokens).log_softmax(-1))
    yield RoundTrip(
        "processed HookedTransformer → ours (log-prob.)",
        "log-probabilities, float64",
        error,
        MODEL_TOLERANCE[torch.float64],
    )
