"""Parameters are read by names, shapes and order; what neither of them tells is tried."""

import pytest
import torch
from torch import Tensor, nn

from gptladder.assembly.config import GPT2Config
from gptladder.ladder import climb
from gptladder.ladder.candidate.parameters import read

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
