"""Parameters are read by names, shapes and order; what neither of them tells is tried."""

import copy

import pytest
import torch
from torch import Tensor, nn

from gptladder.assembly.config import GPT2Config
from gptladder.ladder import climb, try_layer
from gptladder.ladder.candidate.layouts import Unreadable, shapes
from gptladder.ladder.candidate.parameters import read
from gptladder.ladder.candidate.shapes_in_words import both_sides

CONFIG = GPT2Config(d_model=18, n_heads=3, d_head=6, d_mlp=72, d_vocab=41, n_ctx=97, n_layers=2)


class Dense(nn.Module):
    """A matrix [in out] of a class and a name that tell nothing of how it lies."""

    def __init__(self, size: int, to: int) -> None:
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(size, to)), nn.Parameter(torch.zeros(to))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel + self.bias


class Attention(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv, self.proj = Dense(n_embd, 3 * n_embd), Dense(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(z.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, n_embd: int, names: tuple[str, str], activation: str = "tanh") -> None:
        super().__init__()
        self.names, self.activation = names, activation
        self.add_module(names[0], Dense(n_embd, 4 * n_embd))
        self.add_module(names[1], Dense(4 * n_embd, n_embd))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.get_submodule(name) for name in self.names)
        return second(nn.functional.gelu(first(x), approximate=self.activation))


class Block(nn.Module):
    names = ("fc", "proj")
    activation = "tanh"

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(n_embd), Attention(n_embd, n_head), nn.LayerNorm(n_embd)
        self.mlp = MLP(n_embd, self.names, self.activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


def block(*names: str) -> type[Block]:
    return type("Block", (Block,), {"names": names})


# Hashes of strings, and with them the order of a set, are other ones in every process: among eight pairs of names a
# set brings one into the wrong order nearly always.
@pytest.mark.parametrize("pair", ["ab", "cd", "ef", "gi", "jk", "mn", "rs", "tu"])
def test_of_an_mlps_matrices_the_one_defined_first_is_read_as_the_first(pair: str) -> None:
    names = (f"part_{pair[0]}", f"part_{pair[1]}")
    layouts = read(block(*names)(18, 3), "block", CONFIG)
    assert f"mlp.{names[0]}.kernel is W_in, mlp.{names[1]}.kernel is W_out" in layouts[0].label


@pytest.mark.parametrize("names", [("c_fc_w", "c_proj_w"), ("up_kernel", "down_kernel"), ("w1_matrix", "w2_matrix")])
def test_names_with_the_kind_of_a_number_at_their_end_are_known(names: tuple[str, str]) -> None:
    layer = nn.Module()
    for name, shape in reversed(list(zip(names, [(18, 72), (72, 18)], strict=True))):
        layer.register_parameter(name, nn.Parameter(torch.randn(shape)))
    labels = [each.label for each in read(layer, "mlp", CONFIG)]
    assert labels == [f"{names[0]} is W_in, {names[1]} is W_out"]


class Backwards(MLP):
    """Its second matrix is defined first."""

    def __init__(self, n_embd: int) -> None:
        super().__init__(n_embd, ("b", "a"))
        self._modules["b"] = self._modules.pop("b")


class BackwardsAndWrong(Backwards):
    def __init__(self, n_embd: int) -> None:
        super().__init__(n_embd)
        self.activation = "none"


def test_what_neither_names_nor_modules_tell_is_tried() -> None:
    result = climb(mlp=Backwards, cases=2)
    assert result.passed, str(result)
    assert result.rungs[0].reading == "b.kernel is W_in, a.kernel is W_out"
    wrong = climb(mlp=BackwardsAndWrong, cases=2)
    assert wrong.rungs[0].mistakes == ("erf GELU for tanh GELU",), "no order makes a wrong layer right"


def test_a_third_matrix_is_none_of_an_mlps() -> None:
    gated = MLP(18, ("w1", "w2"))
    gated.w3 = Dense(18, 72)
    with pytest.raises(ValueError, match=r"w3.kernel \[18, 72\] is none of an MLP's parameters"):
        read(gated, "mlp", CONFIG)


@pytest.mark.parametrize(
    ("pattern", "oddity"),
    [
        ("(c n h) m", ""),
        ("(c h n) m", "the numbers of the heads are interleaved"),
        ("(n c h) m", "each head has its q, k and v side by side"),
        ("(n h c) m", "the numbers of q, k and v are interleaved"),
        ("(h n c) m", "the numbers of the heads are interleaved and the numbers of q, k and v are interleaved"),
    ],
)
def test_the_note_on_how_a_matrix_lies_names_what_is_interleaved(pattern: str, oddity: str) -> None:
    layer = nn.ModuleDict({"qkv": nn.Linear(18, 54), "proj": nn.Linear(18, 18)})
    layouts = read(layer, "attention", CONFIG)
    assert oddity in {
        each.oddity for each in layouts if f"holds q, k, v as [{pattern}], proj is [m (n h)]" in each.label
    }


class Convolution(nn.Module):
    """A matrix as OpenAI's own code keeps it: [1 in out]."""

    def __init__(self, size: int, to: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(1, size, to)), nn.Parameter(torch.zeros(to))


def test_axes_of_length_1_make_no_difference() -> None:
    layer = nn.ModuleDict({"c_attn": Convolution(18, 54), "c_proj": Convolution(18, 18)})
    layouts = read(layer, "attention", CONFIG)
    assert layouts[0].label == "c_attn.w holds q, k, v as [m (c n h)], c_proj.w is [(n h) m]"
    given = {name: torch.randn(shape) for name, shape in shapes("attention", CONFIG).items()}
    assert {name: tuple(each.shape) for name, each in layouts[0].fill(given).items()} == {
        name: tuple(each.shape) for name, each in layer.named_parameters()
    }


def refusal(layer: nn.Module, rung: str = "attention") -> str:
    with pytest.raises(Unreadable) as caught:
        read(layer, rung, CONFIG)
    return str(caught.value)


def test_refusals_give_the_first_reason() -> None:
    head = nn.ModuleDict({each: nn.Linear(18, 7) for each in ("q", "k", "v")})
    assert refusal(head) == "it has nothing that could be W_O, as one head of attention has none"
    large = nn.ModuleDict({"wq": nn.Linear(768, 768), "wk": nn.Linear(768, 768), "wv": nn.Linear(768, 768)})
    large["wo"] = nn.Linear(768, 768)
    assert refusal(large).startswith("the shapes of wq.weight [768, 768]"), "its bias is no second projection"


class Twice(nn.Module):
    def __init__(self, n_embd: int, n_head: int, n_layer: int, n_vocab: int, n_ctx: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(n_vocab, n_embd), nn.Embedding(n_ctx, n_embd)
        self.h = nn.ModuleList([Block(n_embd, n_head)] * max(2, n_layer))


def test_one_block_in_all_places_is_refused_without_a_table() -> None:
    fault = climb(model=Twice, cases=1).rungs[0].fault
    assert fault is not None
    assert "h.0 and h.1 are one and the same Block" in fault.message
    assert fault.listing == ""


def test_parameters_of_other_names_are_listed_beside_gpt2s() -> None:
    text = both_sides({"W_E": (41, 18), "W_U": (18, 41)}, {"table": (41, 18)}, {41: "d_vocab", 18: "d_model"})
    rows = [line.split(maxsplit=1) for line in text.splitlines()]
    assert text.splitlines()[1] == "    W_E [d_vocab d_model]                table [d_vocab d_model]"
    assert rows[2] == ["W_U", "[d_model d_vocab]"]
    same = both_sides({"W_E": (41, 18)}, {"W_E": (18, 41)}, {}, wrong=["W_E"])
    assert same.splitlines()[1] == "  x W_E [41 18]                          W_E [18 41]"


class Aufmerksamkeit(nn.Module):
    """Its names tell nothing; the output projection is defined first."""

    sharp = 1.0

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.koepfe = n_head
        self.ausgabe, self.anfrage = nn.Linear(n_embd, n_embd), nn.Linear(n_embd, n_embd)
        self.paare = nn.ModuleList([nn.Linear(n_embd, n_embd), nn.Linear(n_embd, n_embd)])

    def forward(self, x: Tensor) -> Tensor:
        every = (self.anfrage, *self.paare)
        q, k, v = (each(x).unflatten(-1, (self.koepfe, -1)).transpose(1, 2) for each in every)
        z = nn.functional.scaled_dot_product_attention(self.sharp * q, k, v, is_causal=True)
        return self.ausgabe(z.transpose(1, 2).flatten(2))


class Sharp(Aufmerksamkeit):
    sharp = 2.0


def test_four_matrices_of_unknown_names_are_tried_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(try_layer, "explained", lambda layer, tried, *_: tried)  # only the verdict is wanted
    assert len(read(Aufmerksamkeit(18, 3), "attention", CONFIG)) == 24 * 2 * 2
    right = climb(attention=Aufmerksamkeit, cases=2)
    assert right.passed, str(right)
    assert right.rungs[0].reading == "anfrage, paare.0, paare.1 are [(n h) m], ausgabe is [m (n h)]"
    wrong = climb(attention=Sharp, cases=2)
    assert wrong.rungs[0].status == "failed", "no order makes a wrong layer right"


def test_a_known_name_beside_unknown_ones_is_not_guessed_about() -> None:
    layer = nn.ModuleDict({each: nn.Linear(18, 18) for each in ("query", "a", "b", "c")})
    assert "is none of attention's parameters" in refusal(layer)


def test_three_matrices_beside_an_output_projection_keep_their_biases() -> None:
    layer = nn.ModuleDict({each: nn.Linear(18, 18) for each in ("linears_0", "linears_1", "linears_2", "proj")})
    layouts = read(layer, "attention", CONFIG)
    given = {name: torch.randn(shape) for name, shape in shapes("attention", CONFIG).items()}
    assert layouts[0].label == "linears_0, linears_1, linears_2 are [(n h) m], proj is [m (n h)]"
    torch.testing.assert_close(layouts[0].fill(given)["linears_1.bias"], given["b_K"].flatten())
    assert len({each.split for each in layouts}) == 2 * 3, "queries and keys may change places"


def test_torchs_own_attention_has_one_layout() -> None:
    layouts = read(nn.MultiheadAttention(18, 3), "attention", CONFIG)
    assert [each.label for each in layouts] == ["in_proj_weight holds q, k, v as [(c n h) m], out_proj is [m (n h)]"]


def lists(heads: int = 3, bias: tuple[int, ...] = (3, 6)) -> nn.Module:
    """Return attention with a matrix for each head, and one bias for all heads."""
    layer = nn.Module()
    for letter in "QKV":
        layer.register_module(f"W_{letter}", nn.ParameterList(torch.randn(18, 6) for _ in range(heads)))
        layer.register_parameter(f"b_{letter}", nn.Parameter(torch.randn(bias)))
    layer.W_O, layer.b_O = nn.ParameterList(torch.randn(6, 18) for _ in range(heads)), nn.Parameter(torch.zeros(18))
    return layer


def test_a_matrix_of_each_head_may_stand_beside_a_bias_of_all() -> None:
    given = {name: torch.randn(shape) for name, shape in shapes("attention", CONFIG).items()}
    state = read(lists(), "attention", CONFIG)[0].fill(given)
    torch.testing.assert_close(state["W_K.1"], given["W_K"][1])
    torch.testing.assert_close(state["b_K"], given["b_K"])


def test_parameters_of_some_heads_are_refused_in_words() -> None:
    assert "W_Q.3 [18, 6] are not one for each of n_heads=3 heads" in refusal(lists(heads=4))
    assert refusal(lists(bias=(3, 5))) == "b_Q [3, 5] has not the 18 numbers of its bias"
    mixed = lists()
    mixed.W_K = nn.Parameter(torch.randn(3, 18, 6))
    assert "some of W_Q.0 [18, 6]" in refusal(mixed)


@pytest.mark.parametrize("first", ["k", "v"])
def test_keys_and_values_may_share_a_matrix_beside_the_queries(first: str) -> None:
    layer = nn.ModuleDict({"q": nn.Linear(18, 18), "kv": nn.Linear(18, 36), "out": nn.Linear(18, 18)})
    given = {name: torch.randn(shape) for name, shape in shapes("attention", CONFIG).items()}
    layouts = read(layer, "attention", CONFIG)
    layout = next(each for each in layouts if ("values come" in each.oddity) == (first == "v"))
    assert "b_K" not in layout.missing
    state = layout.fill(given)
    half = state["kv.weight"].chunk(2)[0 if first == "k" else 1]
    torch.testing.assert_close(half, given["W_K"].transpose(1, 2).reshape(18, 18))
    torch.testing.assert_close(state["q.weight"], given["W_Q"].transpose(1, 2).reshape(18, 18))
    torch.testing.assert_close(state["kv.bias"].chunk(2)[0 if first == "v" else 1], given["b_V"].flatten())


def test_modules_that_share_a_parameter_are_not_called_one_module() -> None:
    one = nn.Linear(18, 18)
    layer = nn.ModuleDict({"linears": nn.ModuleList(copy.copy(one) for _ in range(4))})
    assert refusal(layer).startswith("linears.0 and linears.1 are two modules that share one parameter, linears.0.w")
    same = nn.ModuleDict({"linears": nn.ModuleList([one] * 4)})
    assert refusal(same).startswith("linears.0 and linears.1 are one and the same Linear")
    table = nn.Parameter(torch.randn(18, 6))
    parameters = nn.ModuleDict({"W_Q": nn.ParameterList([table, table])})
    assert refusal(parameters).startswith("W_Q.0 and W_Q.1 are one and the same parameter")


def test_what_is_lacking_because_it_is_not_registered_or_shared_is_named() -> None:
    plain = nn.ModuleDict({"proj": nn.Linear(18, 18)})
    plain.heads = [nn.Linear(18, 6)]  # type: ignore[assignment]
    assert refusal(plain).endswith(
        "(heads is a plain list of modules, whose parameters are not registered: make it an nn.ModuleList)"
    )
    shared = nn.ModuleDict({each: nn.Linear(18, 18) for each in ("q", "k", "v", "o")})
    shared["k"] = shared["q"]
    assert refusal(shared) == (
        "it has nothing that could be W_K (q.weight and k.weight are one parameter: make one for each)"
    )


@pytest.mark.parametrize(
    "names", [("weights_q", "weights_k", "weights_v", "weights_o"), ("query", "key", "value", "project")]
)
def test_names_of_attentions_matrices_are_known(names: tuple[str, ...]) -> None:
    layer = nn.ModuleDict({name: nn.Linear(18, 18) for name in names})
    assert read(layer, "attention", CONFIG)[0].label.startswith(", ".join(names[:3]))


def test_a_matrix_as_wide_as_three_is_read_whatever_its_name() -> None:
    layer = nn.ModuleDict({"U": nn.Linear(18, 54), "project": nn.Linear(18, 18)})
    assert "U holds q, k, v" in read(layer, "attention", CONFIG)[0].label


def test_of_many_parameters_that_fit_nothing_the_first_are_named() -> None:
    parts = {f"extra_{n}": nn.Linear(5, 3, bias=False) for n in range(7)}
    model = nn.ModuleDict({"h": nn.ModuleList([block("a", "b")(18, 3) for _ in range(2)]), **parts})
    with pytest.raises(Unreadable, match=r"extra_3.weight \[3, 5\] and 3 more: none of GPT-2's parameters"):
        read(model, "model", CONFIG)


def test_two_layer_norms_outside_the_blocks_are_one_too_many() -> None:
    norms = {name: nn.LayerNorm(18) for name in ("encoder_norm", "last_norm")}
    model = nn.ModuleDict({"h": nn.ModuleList([block("a", "b")(18, 3) for _ in range(2)]), **norms})
    with pytest.raises(Unreadable, match="encoder_norm, last_norm stand outside the blocks; GPT-2 has one"):
        read(model, "model", CONFIG)


def test_a_constructor_that_python_does_not_call_is_named() -> None:
    class Misspelled(nn.Module):
        def _init_(self) -> None:
            self.fc = nn.Linear(18, 72)

    with pytest.raises(Unreadable, match="its class defines _init_, which is not called when it is made"):
        read(Misspelled(), "mlp", CONFIG)


def test_a_block_with_two_attentions_is_refused_with_both() -> None:
    names = {
        name: nn.ModuleDict({each: nn.Linear(18, 18) for each in ("q", "k", "v", "o")}) for name in ("own", "cross")
    }
    parts = {"ln1": nn.LayerNorm(18), "ln2": nn.LayerNorm(18), "mlp": nn.Linear(18, 72), **names}
    with pytest.raises(Unreadable, match=r"it has 2 attentions \(own.q.* and cross.q.*\), and a block has one"):
        read(nn.ModuleDict(parts), "block", CONFIG)
