"""Right layers of every style climb; each fault other than wrong numbers is reported, with its line."""

import inspect
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from gptladder import GPT2, GPT2Config, components
from gptladder.ladder import CandidateError, climb
from gptladder.ladder.candidate.layer import Candidate
from gptladder.ladder.candidate.places import Code
from gptladder.ladder.candidate.requests import Reply, Request
from gptladder.ladder.candidate.source import load
from gptladder.ladder.diagnosis import faults
from gptladder.ladder.results import Diagnosis, Fault, Tried
from gptladder.ladder.rungs import Trial, distance, draw_case, make_trial, rung

LAYERS = Path(__file__).parents[1] / "layers"
RUNGS = ("embed", "pos_embed", "layer_norm", "attention", "mlp", "block", "unembed", "model")


def ours(cfg: Any) -> GPT2:
    names = ("d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "n_layers", "layer_norm_eps", "act_fn")
    sizes = {name: getattr(cfg, name) for name in names}
    return GPT2(GPT2Config(**sizes, tie_word_embeddings=False, unembed_bias=True))


def in_file(name: str, *classes: str) -> list[Any]:
    return [load(LAYERS / name, [each]).get(each, name) for each in classes]


ARENA = ("Embed", "PosEmbed", "LayerNorm", "Attention", "MLP", "TransformerBlock", "Unembed", "DemoTransformer")
STYLES = {
    "ours": lambda: [*(getattr(components, name) for name in (*ARENA[:5], "Block", "Unembed")), ours],
    "arena": lambda: in_file("arena.py", *ARENA),
    "nanogpt": lambda: in_file("nanogpt.py", *(name.replace("layer_norm", "layernorm") for name in RUNGS)),
    "conv1d": lambda: [
        None,
        None,
        None,
        *in_file("conv1d.py", "attention", "mlp", "block"),
        None,
        *in_file("conv1d.py", "model"),
    ],
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("style", STYLES)
def test_right_layers_in_every_style_climb_to_the_top(style: str, seed: int) -> None:
    layers = {name: layer for name, layer in zip(RUNGS, STYLES[style](), strict=True) if layer}
    climbed = climb(**layers, cases=5, seed=seed)
    assert climbed.passed, str(climbed)
    assert [each.rung.replace("-", "_") for each in climbed.rungs] == list(layers)
    # Not less than this was asked of it: gradients of everything, and a layer by the sizes that it reads.
    assert all(each.verdict and 0 <= each.verdict.gradient < 1e-12 for each in climbed.rungs)
    notes = {each.rung: each.note for each in climbed.rungs if each.note}
    bias = {"unembed": "has no b_U", "model": "tied to W_E"}
    expected = {"ours": {}, "arena": {}, "nanogpt": bias, "conv1d": {"model": bias["model"]}}[style]
    assert notes.keys() == expected.keys()
    assert all(words in notes[name] for name, words in expected.items())


Attention, MLP, Block = in_file("arena.py", "Attention", "MLP", "TransformerBlock")


class Raises(Attention):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("to be written")  # HERE


class RaisesWhenBuilt(Attention):
    def __init__(self, cfg: Any) -> None:
        self.width = cfg.n_odd  # HERE


class Exits(Attention):
    def forward(self, x: Tensor) -> Tensor:
        exit()  # HERE


class ReturnsNothing(Attention):
    def forward(self, x: Tensor) -> None:
        super().forward(x)


class ReturnsTheWrongShape(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(1, 2)  # HERE


class ReturnsFloat32(Attention):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.float()  # HERE


class ChangesItsInput(Attention):
    def forward(self, x: Tensor) -> Tensor:
        x -= x.mean()  # HERE
        return super().forward(x)


class ChangesItsParameters(Attention):
    def forward(self, x: Tensor) -> Tensor:
        self.W_Q.data /= 2  # HERE
        return super().forward(x)


class ReturnsNaN(Attention):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * (y - y - 1).log()  # HERE


class ReturnsNaNForLongSequences(Attention):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if x.shape[1] < 65 else y + (x.sum() - x.sum()).log() * 0  # HERE


class ComputesInFloat32(Attention):
    def forward(self, x: Tensor) -> Tensor:
        x = x.float().to(x.dtype)  # HERE
        return super().forward(x)


class HasAFloat32Scale(Attention):
    def forward(self, x: Tensor) -> Tensor:
        factor = torch.tensor(3.0).sqrt()
        return super().forward(x) * factor / 3**0.5  # HERE


class CutsTheGraph(Attention):
    def forward(self, x: Tensor) -> Tensor:
        x = x.detach()  # HERE
        return super().forward(x)


class ComputesWithoutGradients(Attention):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = x * 1  # HERE
        return super().forward(x)


class PassesOnNoughts(Attention):
    def forward(self, x: Tensor) -> Tensor:
        x = x.detach() + 0 * x  # HERE
        return super().forward(x)


class HasAFrozenParameter(Attention):
    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.W_O.requires_grad_(False)


class ScalesAGradient(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x - x.detach())


class IsNoModule:
    def __init__(self, cfg: Any) -> None:
        pass


class FailsInBackward(Attention):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.exp(super().forward(x))
        y.mul_(1)  # the exponential's gradient needs what it gave
        return y


FAULTY = {
    Raises: ("raises", "forward raises NotImplementedError: to be written."),
    RaisesWhenBuilt: (
        "build",
        "RaisesWhenBuilt raises AttributeError: the configuration has no 'n_odd': give it with --set n_odd=VALUE",
    ),
    Exits: ("exit", "forward calls exit()."),
    ReturnsNothing: (
        "type",
        "forward returns None; it must return a tensor, or a tuple or a dictionary that begins with one.",
    ),
    ReturnsTheWrongShape: (
        "shape",
        "forward returns [batch d_model seq]; it must return [batch seq d_model].",
    ),
    ChangesItsInput: ("input", "forward changes its input in place"),
    ChangesItsParameters: ("input", "forward changes its own parameters: W_Q has other numbers afterwards."),
    ReturnsNaN: ("nan", "forward returns nothing but NaN or infinity."),
    ReturnsNaNForLongSequences: ("nan", "forward returns nothing but NaN or infinity."),
    CutsTheGraph: ("missing", "the output is right, but no gradient reaches input."),
    ComputesWithoutGradients: ("missing", "the output is right, but no gradient reaches input."),
    PassesOnNoughts: ("missing", "the output is right, but no gradient reaches input."),
    HasAFrozenParameter: ("missing", "the output is right, but no gradient reaches W_O."),
    ScalesAGradient: ("gradient", "the output is right, but the gradient of input is off by "),
    IsNoModule: ("build", "IsNoModule makes IsNoModule, which is no nn.Module."),
    FailsInBackward: ("raises", "the backward pass raises RuntimeError: one of the variables needed for gradient"),
}


def undiagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out which mistake it is: test_diagnose tests that, and it takes time."""
    monkeypatch.setattr(faults, "diagnose", lambda rung, *args, **kwargs: Diagnosis())


def fault(found: Tried) -> Fault:
    assert found.fault is not None
    return found.fault


@pytest.mark.parametrize("layer", FAULTY, ids=lambda layer: layer.__name__)
def test_each_fault_is_reported_with_its_line(layer: type, monkeypatch: pytest.MonkeyPatch) -> None:
    undiagnosed(monkeypatch)
    kind, text = FAULTY[layer]
    climbed = climb(attention=layer, cases=2)
    assert not climbed.passed
    found = climbed.rungs[-1]
    assert fault(found).kind == kind
    assert found.text().startswith(text)
    lines, first = inspect.getsourcelines(layer)
    here = [first + index for index, line in enumerate(lines) if "# HERE" in line]
    at = fault(found).at
    assert [int(at.rpartition(":")[2]) if at else None] == (here or [None])
    if here:
        assert fault(found).code == lines[here[0] - first].strip()


def test_a_fault_of_long_sequences_alone_shows_in_the_smallest_case(monkeypatch: pytest.MonkeyPatch) -> None:
    undiagnosed(monkeypatch)
    found = climb(attention=ReturnsNaNForLongSequences, cases=5).rungs[-1]
    assert "A small case that shows it: batch=1 seq=65 " in found.text()
    assert climb(attention=Raises, cases=1).rungs[-1].smallest == {}


def test_a_layer_that_raises_for_some_sizes_shows_the_smallest() -> None:
    class Few(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).reshape(x.shape[0] if x.shape[0] < 3 else 2, -1, x.shape[-1])

    found = climb(attention=Few, cases=10).rungs[-1]
    assert fault(found).kind in ("raises", "shape")
    assert (found.smallest["batch"], found.smallest["n_heads"]) == (3, 1)


def leaves_out(cfg: Any, parameters: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    return MLP(cfg), {name: tensor for name, tensor in parameters.items() if name != "b_out"} | {
        "b_out": torch.zeros(cfg.d_model)
    }


def test_a_bias_that_an_adapter_leaves_out_is_missing() -> None:
    found = climb(mlp=leaves_out, cases=3).rungs[0]
    assert fault(found).kind == "biases"
    assert found.text().startswith("b_out is missing (GPT-2 has it); all else is right.")

    def returns_a_layer(cfg: Any, p: Any) -> nn.Module:
        return MLP(cfg)

    text = "returns_a_layer returns MLP; it must return the layer and its state dict"
    assert text in climb(mlp=returns_a_layer).rungs[0].text()


def test_an_adapters_arguments_may_be_called_anything() -> None:
    def right(sizes: Any, theirs: Any) -> tuple[nn.Module, dict[str, Tensor]]:
        return MLP(sizes), dict(theirs)

    climb(mlp=right, cases=2).raise_if_failed()


@pytest.mark.parametrize("layer", [ReturnsFloat32, ComputesInFloat32, HasAFloat32Scale], ids=lambda each: each.__name__)
def test_float32_arithmetic_is_no_fault_and_its_line_is_named(layer: type) -> None:
    found = climb(attention=layer, cases=5).rungs[0]
    assert found.passed, found.text()
    assert "ight in float32" in found.note
    if layer is not ReturnsFloat32:
        lines, first = inspect.getsourcelines(layer)
        here = next(first + index for index, line in enumerate(lines) if "# HERE" in line)
        assert f"test_layer.py:{here} computes in float32" in found.note


class NeverReadsItsBK(Attention):
    def forward(self, x: Tensor) -> Tensor:
        self.b_K, kept = torch.zeros_like(self.b_K), self._parameters.pop("b_K")
        try:
            return super().forward(x)
        finally:
            del self.b_K
            self.b_K = kept


def test_a_mistake_beside_a_float32_step_is_not_called_rounding() -> None:
    class Averages(HasAFloat32Scale):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x) - self.b_O) / self.cfg.n_heads + self.b_O

    class NeverReads(NeverReadsItsBK, HasAFloat32Scale):
        pass

    for seed in range(3):
        assert climb(attention=Averages, cases=6, seed=seed).rungs[0].mistakes == ("heads averaged",)
    found = climb(attention=NeverReads, cases=3).rungs[0]
    assert found.fault is not None
    assert fault(found).message == "the output is right, but no gradient reaches b_K"


def test_a_note_on_widened_steps_does_not_call_a_wrong_layer_right() -> None:
    class Wrong(ReturnsFloat32):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x)

    found = climb(attention=Wrong, cases=2).rungs[0]
    assert not found.passed
    assert found.note.startswith("In float64 forward returns float32")


def test_the_way_to_read_square_matrices_is_the_one_with_most_right_steps() -> None:
    class MultiHeadAttention(nn.Module):  # not torch's
        def __init__(self, d_model: int, n_heads: int) -> None:
            super().__init__()
            self.n_heads = n_heads
            self.Wq, self.Wk, self.Wv, self.Wo = (nn.Parameter(torch.empty(d_model, d_model)) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (self.split(x @ W) for W in (self.Wq, self.Wk, self.Wv))
            scores = (q @ k.mT).tanh()  # HERE
            later = torch.ones(scores.shape[-2:]).triu(1).bool()
            return (scores.masked_fill(later, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2) @ self.Wo

        def split(self, x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    found = climb(attention=MultiHeadAttention, cases=3).rungs[0]
    assert found.diagnosis is not None
    assert found.diagnosis.finding is not None
    assert "# HERE" in (found.diagnosis.finding.code or "")
    assert "the scores q·k" in found.text()


def test_a_constructor_is_given_the_fields_that_it_names_and_no_others() -> None:
    class Named(MLP):
        def __init__(self, d_model: int, d_mlp: int, bias: bool = True, *, layer_norm_eps: float = 0.0) -> None:
            assert bias is True
            assert layer_norm_eps > 0
            nn.Module.__init__(self)
            self.W_in, self.b_in = nn.Parameter(torch.empty(d_model, d_mlp)), nn.Parameter(torch.empty(d_mlp))
            self.W_out, self.b_out = nn.Parameter(torch.empty(d_mlp, d_model)), nn.Parameter(torch.empty(d_model))

    climb(mlp=Named, cases=2).raise_if_failed()


def test_a_default_configuration_is_not_used() -> None:
    class Defaulted(MLP):
        def __init__(self, cfg: Any = None) -> None:
            super().__init__(cfg)

    climb(mlp=Defaulted, cases=2).raise_if_failed()


def test_an_unknown_argument_is_refused_with_the_option_that_sets_it() -> None:
    class Odd(MLP):
        def __init__(self, d_model: int, d_mlp: int, oddity: int) -> None:
            nn.Module.__init__(self)
            self.W_in, self.b_in = nn.Parameter(torch.empty(d_model, d_mlp)), nn.Parameter(torch.empty(d_mlp))
            self.W_out, self.b_out = nn.Parameter(torch.empty(d_mlp, d_model)), nn.Parameter(torch.empty(d_model))
            assert oddity == 3

    found = climb(mlp=Odd, cases=2).rungs[0]
    assert (found.status, fault(found).names) == ("refused", ("oddity",))
    assert "give it with --set oddity=VALUE" in found.text()
    climb(mlp=Odd, cases=2, chosen={"oddity": 3}).raise_if_failed()
    with pytest.raises(CandidateError, match="3 is neither a class nor a function"):
        climb(attention=cast(Any, 3))


def test_transformer_lens_attention_takes_its_input_three_times() -> None:
    class Three(Attention):
        def forward(self, query_input: Tensor, key_input: Tensor, value_input: Tensor) -> list[Tensor | str]:
            assert query_input is key_input is value_input
            return [super().forward(query_input), "a cache"]

    climb(attention=Three, cases=2).raise_if_failed()


def test_what_a_layer_does_not_read_does_not_vary() -> None:
    asked = []

    class Reads(MLP):
        def __init__(self, cfg: Any) -> None:
            asked.append((cfg.d_mlp == 4 * cfg.d_model, cfg.act_fn))
            super().__init__(cfg)

    class ReadsNot(MLP):
        pass

    assert climb(mlp=ReadsNot, cases=6).passed
    # It has read what its activation should be, and does not heed it; for GPT-2's it is right.
    climbed = climb(mlp=Reads, cases=15)
    assert {act_fn for _, act_fn in asked} == {"gelu_new", "gelu", "relu"}
    assert climbed.passed
    note = climbed.rungs[0].note
    assert note.startswith("With GPT-2's own choices (gelu_new) its output is right; with others that it reads, the ")


def test_heads_that_must_fill_the_model_are_no_fault() -> None:
    class Fills(Attention):
        def __init__(self, cfg: Any) -> None:
            assert cfg.d_model == cfg.n_heads * cfg.d_head
            super().__init__(cfg)

    climbed = climb(attention=Fills, cases=3)
    assert climbed.passed
    note = climbed.rungs[0].note
    assert note.startswith(
        "Only GPT-2's own choices (n_heads * d_head = d_model) were tried: with others that it reads, "
    )
    assert "Fills raises AssertionError" in note


def reply_to(make: Any, rung_name: str = "attention", **how: Any) -> tuple[Trial, Reply]:
    judged = rung(rung_name)
    trial = make_trial(judged, judged.references[0], draw_case(random.Random(3)), torch.float64)
    return trial, Candidate(make, "mine", Code(Path(__file__))).respond(Request(trial, **how))


def test_a_trace_has_every_tensor_with_its_line_and_the_parts_of_a_block() -> None:
    trial, reply = reply_to(Attention, look=True)
    shape = (trial.case.batch, trial.config.n_heads, trial.case.seq, trial.case.seq)
    softmax = next(event for event in reply.trace.events if event.function == "softmax")
    assert softmax.value.shape == shape
    assert reply.trace.events[reply.trace.output].value.shape == trial.given.shape
    _, reply = reply_to(Block, "block", look=True)
    assert [part for part, _, _ in reply.trace.parts] == ["ln1", "attn", "ln2", "mlp"]


def test_looking_changes_nothing() -> None:
    for look in (False, True):
        trial, reply = reply_to(Attention, look=look)
        assert reply.answer is not None
        found = distance(reply.answer, trial.expected)
        assert max(found) < 1e-12
        assert reply.trace.places == {}
        assert isinstance(reply, Reply)


class Remembers(Attention):
    """Keeps the mask of its first call."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "mask"):
            self.mask = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        self.seq = x.shape[1]
        return super().forward(x)

    def apply_causal_mask(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.mask[: self.seq, : self.seq], -torch.inf)


class FillsMinus30(Attention):
    def apply_causal_mask(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -60.0)


class Short(Attention):
    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.register_buffer("keep", torch.ones(256, 256).tril().bool())

    def apply_causal_mask(self, scores: Tensor) -> Tensor:
        seq = scores.shape[-1]
        return scores.masked_fill(~self.keep[:seq, :seq], -torch.inf)


class DropsOut(Attention):
    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.rate = cfg.attn_pdrop

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(super().forward(x), self.rate)  # HERE


class Halves(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).half().to(x.dtype)


HIDDEN = {
    Remembers: ("state", "after a shorter sequence, forward raises"),
    FillsMinus30: ("large", "where scores are in the hundreds, off by"),
    Short: ("context", "for one of n_ctx = 1024 positions: forward raises"),
    DropsOut: ("random", "it gives another output each time, in eval mode too"),
    Halves: ("half", "computed in torch.float64 throughout, it would be right"),
}


@pytest.mark.parametrize("layer", HIDDEN, ids=lambda layer: layer.__name__)
def test_what_is_right_on_first_sight_is_found(layer: type) -> None:
    kind, text = HIDDEN[layer]
    found = climb(attention=layer, cases=3).rungs[0]
    assert (found.status, fault(found).kind) == ("failed", kind), found.text()
    assert text in found.text()


def test_a_parameter_that_is_never_read_is_a_fault() -> None:
    found = climb(attention=NeverReadsItsBK, cases=3).rungs[0]
    assert fault(found).message == "the output is right, but no gradient reaches b_K"
    assert found.mistakes == ("b_K not added to the keys",)
