"""Layers of every make climb; each thing that can be wrong with one, other than its numbers, is said, with its line."""

import inspect
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from gptladder import GPT2, GPT2Config, components
from gptladder.ladder import CandidateError, climb, trying
from gptladder.ladder.candidate.layer import Candidate, Question
from gptladder.ladder.candidate.source import Code, find
from gptladder.ladder.rungs import distance, draw_case, make_trial, rung

LAYERS = Path(__file__).parents[1] / "layers"
RUNGS = ("embed", "pos_embed", "layernorm", "attention", "mlp", "block", "unembed", "model")


def ours(cfg):
    names = ("d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "n_layers", "layer_norm_eps", "act_fn")
    sizes = {name: getattr(cfg, name) for name in names}
    return GPT2(GPT2Config(**sizes, tie_word_embeddings=False, unembed_bias=True))


def in_file(name, *classes):
    return [find(f"{LAYERS / name}:{each}")[0] for each in classes]


ARENA = ("Embed", "PosEmbed", "LayerNorm", "Attention", "MLP", "TransformerBlock", "Unembed", "DemoTransformer")
STYLES = {
    "ours": lambda: [*(getattr(components, name) for name in (*ARENA[:5], "Block", "Unembed")), ours],
    "arena": lambda: in_file("arena.py", *ARENA),
    "nanogpt": lambda: in_file("nanogpt.py", *RUNGS),
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
def test_right_layers_in_every_style_climb_to_the_top(style, seed):
    layers = {name: layer for name, layer in zip(RUNGS, STYLES[style](), strict=True) if layer}
    climbed = climb(**layers, cases=5, seed=seed)
    assert climbed.passed, str(climbed)
    assert [each.rung.replace("-", "_") for each in climbed.rungs] == list(layers)
    # Not less than this was asked of it: gradients of everything, and a layer by the sizes that it reads.
    assert all(0 <= each.verdict.gradient < 1e-12 for each in climbed.rungs)
    notes = {each.rung: each.note for each in climbed.rungs if each.note}
    without = {"unembed": "no b_U", "model": "no unembed.b_U and no unembed.W_U"}
    expected = {"ours": {}, "arena": {}, "nanogpt": without, "conv1d": {"model": without["model"]}}[style]
    assert notes.keys() == expected.keys()
    assert all(words in notes[name] for name, words in expected.items())


Attention, MLP, Block = in_file("arena.py", "Attention", "MLP", "TransformerBlock")


class Raises(Attention):
    def forward(self, x):
        raise NotImplementedError("to be written")  # HERE


class RaisesWhenBuilt(Attention):
    def __init__(self, cfg):
        self.width = cfg.n_embd  # HERE


class Exits(Attention):
    def forward(self, x):
        exit()  # HERE


class ReturnsNothing(Attention):
    def forward(self, x):
        super().forward(x)


class ReturnsTheWrongShape(Attention):
    def forward(self, x):
        return super().forward(x).transpose(1, 2)


class ReturnsFloat32(Attention):
    def forward(self, x):
        y = super().forward(x)
        return y.float()  # HERE


class ChangesItsInput(Attention):
    def forward(self, x):
        x -= x.mean()  # HERE
        return super().forward(x)


class ReturnsNaN(Attention):
    def forward(self, x):
        y = super().forward(x)
        return y * (y - y - 1).log()  # HERE


class ReturnsNaNForLongSequences(Attention):
    def forward(self, x):
        y = super().forward(x)
        return y if x.shape[1] < 65 else y + (x.sum() - x.sum()).log() * 0  # HERE


class ComputesInFloat32(Attention):
    def forward(self, x):
        x = x.float().to(x.dtype)  # HERE
        return super().forward(x)


class HasAFloat32Scale(Attention):
    def forward(self, x):
        factor = torch.tensor(3.0).sqrt()
        return super().forward(x) * factor / 3**0.5  # HERE


class CutsTheGraph(Attention):
    def forward(self, x):
        x = x.detach()  # HERE
        return super().forward(x)


class ComputesWithoutGradients(Attention):
    def forward(self, x):
        with torch.no_grad():
            x = x * 1  # HERE
        return super().forward(x)


class PassesOnNoughts(Attention):
    def forward(self, x):
        x = x.detach() + 0 * x  # HERE
        return super().forward(x)


class HasAFrozenParameter(Attention):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.W_O.requires_grad_(False)


class ScalesAGradient(Attention):
    def forward(self, x):
        return super().forward(2 * x - x.detach())


class IsNoModule:
    def __init__(self, cfg):
        pass


class FailsInBackward(Attention):
    def forward(self, x):
        y = torch.exp(super().forward(x))
        y.mul_(1)  # the exponential's gradient needs what it gave
        return y


FAULTY = {
    Raises: ("raises", "forward raises NotImplementedError: to be written."),
    RaisesWhenBuilt: (
        "build",
        "RaisesWhenBuilt raises AttributeError: the configuration has no 'n_embd'; it has d_model,",
    ),
    Exits: ("exit", "forward calls exit()."),
    ReturnsNothing: ("type", "forward returns None; it must return a tensor, or a tuple that begins with one."),
    ReturnsTheWrongShape: (
        "shape",
        "forward returns [batch d_model seq]; it must return [batch seq d_model].",
    ),
    ReturnsFloat32: ("dtype", "forward returns float32 where its input and its parameters are float64."),
    ChangesItsInput: ("input", "forward changes its input in place"),
    ReturnsNaN: ("nan", "forward returns nothing but NaN or infinity."),
    ReturnsNaNForLongSequences: ("nan", "forward returns nothing but NaN or infinity."),
    ComputesInFloat32: ("precision", "right in float32, but off by "),
    HasAFloat32Scale: ("precision", "right in float32, but off by "),
    CutsTheGraph: ("missing", "the output is right, but no gradient reaches input."),
    ComputesWithoutGradients: ("missing", "the output is right, but no gradient reaches input."),
    PassesOnNoughts: ("missing", "the output is right, but no gradient reaches input."),
    HasAFrozenParameter: ("missing", "the output is right, but no gradient reaches W_O."),
    ScalesAGradient: ("gradient", "the output is right, but the gradient of input is off by "),
    IsNoModule: ("build", "IsNoModule makes IsNoModule, which is no nn.Module."),
    FailsInBackward: ("raises", "the backward pass raises RuntimeError: one of the variables needed for gradient"),
}


def undiagnosed(monkeypatch):
    """What the mistake is, is for test_diagnosis; here it would only take time."""
    monkeypatch.setattr(trying, "diagnose", lambda rung, *args, **kwargs: None)


@pytest.mark.parametrize("layer", FAULTY, ids=lambda layer: layer.__name__)
def test_each_fault_is_said_with_the_line_it_happened_at(layer, monkeypatch):
    undiagnosed(monkeypatch)
    kind, told = FAULTY[layer]
    climbed = climb(attention=layer, cases=2)
    assert not climbed.passed
    found = climbed.rungs[-1]
    assert found.fault.kind == kind
    assert found.told().startswith(told)
    lines, first = inspect.getsourcelines(layer)
    here = [first + index for index, line in enumerate(lines) if "# HERE" in line]
    assert [int(found.fault.at.rpartition(":")[2])] == here if here else found.fault.at is None
    if here:
        assert found.fault.code == lines[here[0] - first].strip()


def test_what_happens_for_long_sequences_alone_is_said_so(monkeypatch):
    undiagnosed(monkeypatch)
    found = climb(attention=ReturnsNaNForLongSequences, cases=5).rungs[-1]
    assert "Smallest case: batch=1 seq=65 " in found.told()
    assert climb(attention=Raises, cases=1).rungs[-1].smallest is None


def test_a_layer_that_raises_for_some_sizes_only_is_shown_the_smallest():
    class Few(Attention):
        def forward(self, x):
            return super().forward(x).reshape(x.shape[0] if x.shape[0] < 3 else 2, -1, x.shape[-1])

    found = climb(attention=Few, cases=10).rungs[-1]
    assert found.fault.kind in ("raises", "shape")
    assert (found.smallest.batch, found.smallest.config.n_heads) == (3, 1)


class Misnamed(MLP):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.W_input = self._parameters.pop("W_in")


class Transposed(MLP):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.W_out = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp))


def leaves_out(cfg, parameters):
    return MLP(cfg), {name: tensor for name, tensor in parameters.items() if name != "b_out"} | {
        "b_out": torch.zeros(cfg.d_model)
    }


def test_a_parameter_that_has_no_place_is_listed_with_both_sides():
    found = climb(mlp=Misnamed).rungs[-1]
    assert found.fault.kind == "parameters"
    assert found.told().splitlines() == [
        "Misnamed's parameters do not match.",
        "    given                                yours",
        "  x W_in [d_model d_mlp]                 none of this name; is it W_input?",
        "    b_in [d_mlp]                         b_in [d_mlp]",
        "    W_out [d_mlp d_model]                W_out [d_mlp d_model]",
        "    b_out [d_model]                      b_out [d_model]",
        "  x                                      W_input [d_model d_mlp]",
    ]


def test_a_parameter_of_another_shape_is_listed_with_both_sides():
    assert "  x W_out [d_mlp d_model]                W_out [d_model d_mlp]" in climb(mlp=Transposed).rungs[-1].told()


def test_an_adapter_must_use_every_parameter_and_return_what_it_promises():
    assert (
        "leaves_out's parameters do not match: the adapter makes nothing of b_out, or cuts it from the graph."
        in climb(mlp=leaves_out).rungs[0].told()
    )

    def returns_a_layer(cfg, parameters):
        return MLP(cfg)

    told = "returns_a_layer returns MLP; it must return the layer and its state dict"
    assert told in climb(mlp=returns_a_layer).rungs[0].told()


def test_a_constructor_is_given_the_fields_that_it_names_and_no_others():
    class Named(MLP):
        def __init__(self, d_model, d_mlp, bias=True, *, layer_norm_eps=0.0):
            assert bias is True
            assert layer_norm_eps > 0
            nn.Module.__init__(self)
            self.W_in, self.b_in = nn.Parameter(torch.empty(d_model, d_mlp)), nn.Parameter(torch.empty(d_mlp))
            self.W_out, self.b_out = nn.Parameter(torch.empty(d_mlp, d_model)), nn.Parameter(torch.empty(d_model))

    climb(mlp=Named, cases=2).raise_if_failed()


def test_a_default_configuration_is_not_used():
    class Defaulted(MLP):
        def __init__(self, cfg=None):
            super().__init__(cfg)

    climb(mlp=Defaulted, cases=2).raise_if_failed()


def test_a_constructor_that_asks_for_what_there_is_not_is_sent_to_the_adapters():
    class Torchs(nn.Module):
        def __init__(self, embed_dim, num_heads):
            super().__init__()

    with pytest.raises(CandidateError, match=r"Torchs asks for embed_dim, num_heads\. .* write an adapter"):
        climb(attention=Torchs)
    with pytest.raises(CandidateError, match="3 is neither a class nor a function"):
        climb(attention=3)


def test_transformer_lens_attention_takes_its_input_three_times():
    class Three(Attention):
        def forward(self, query_input, key_input, value_input):
            assert query_input is key_input is value_input
            return [super().forward(query_input), "a cache"]

    climb(attention=Three, cases=2).raise_if_failed()


def test_what_a_layer_does_not_read_does_not_vary():
    asked = []

    class Reads(MLP):
        def __init__(self, cfg):
            asked.append((cfg.d_mlp == 4 * cfg.d_model, cfg.act_fn))
            super().__init__(cfg)

    class ReadsNot(MLP):
        pass

    assert climb(mlp=ReadsNot, cases=6).passed
    # It has read what its activation should be, and does not heed it; for GPT-2's it is right.
    climbed = climb(mlp=Reads, cases=15)
    assert {act_fn for _, act_fn in asked} == {"gelu_new", "gelu", "relu"}
    assert climbed.passed
    assert climbed.rungs[0].note.startswith("It is right for GPT-2's own choices (gelu_new, ")


def test_heads_that_must_fill_the_model_are_no_fault():
    class Fills(Attention):
        def __init__(self, cfg):
            assert cfg.d_model == cfg.n_heads * cfg.d_head
            super().__init__(cfg)

    climbed = climb(attention=Fills, cases=3)
    assert climbed.passed
    assert "but not for others that it reads: Fills raises AssertionError" in climbed.rungs[0].note


def respond(make, rung_name="attention", look=""):
    judged = rung(rung_name)
    trial = make_trial(judged, judged.references[0], draw_case(random.Random(3)), torch.float64)
    question = Question(rung_name, trial.config, trial.dtype, trial.parameters, trial.given, trial.cotangent)
    return trial, Candidate(make, "mine", Code(Path(__file__))).respond(question, look)


def test_the_pattern_is_seen_where_the_softmax_is_though_no_submodule_has_it():
    trial, reply = respond(Attention, look="taps")
    shape = (trial.case.batch, trial.config.n_heads, trial.case.seq, trial.case.seq)
    assert reply.taps["hook_pattern"].shape == reply.taps["hook_attn_scores"].shape == shape
    assert torch.allclose(reply.taps["hook_pattern"].sum(-1), torch.ones(()).double())
    _, reply = respond(Block, "block", "taps")
    assert {"ln1", "attn", "ln2", "mlp", "attn.hook_pattern"} <= reply.taps.keys()


def test_looking_changes_nothing():
    for look in ("", "taps", "watch"):
        trial, reply = respond(Attention, look=look)
        found = distance(reply.answer, trial.expected)
        assert max(found.output, found.gradient) < 1e-12
        assert reply.places == {}
