"""Parameters are read whatever modules they are in: none, one tensor for several, lists side by side."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder import climb, try_layer


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def norm(x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], gain, offset)


class OwnParameters(nn.Module):
    """A block without modules. The gains come in pairs of either kind."""

    exponent = 1.0

    def __init__(self, d_model: int, n_heads: int, d_mlp: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        for name in ("g1", "g2", "o1", "o2", "bq", "bk", "bv", "bo", "b2"):
            setattr(self, name, parameter(d_model))
        for name in ("wv", "wk", "wq", "wo"):
            setattr(self, name, parameter(d_model, d_model))
        self.w1, self.b1, self.w2 = parameter(d_model, d_mlp), parameter(d_mlp), parameter(d_mlp, d_model)

    def forward(self, x: Tensor) -> Tensor:
        p = dict(self.named_parameters())
        h = norm(x, p["g1"], p["o1"])
        q, k, v = (h @ w + b for w, b in ((p["wq"], p["bq"]), (p["wk"], p["bk"]), (p["wv"], p["bv"])))
        x = x + attend(q, k, v, self.n_heads) @ p["wo"] + p["bo"]
        h = norm(x, p["g2"], p["o2"]) @ p["w1"] + p["b1"]
        return x + self.exponent * nn.functional.gelu(h, approximate="tanh") @ p["w2"] + p["b2"]


class OwnParametersAndWrong(OwnParameters):
    exponent = 2.0


class FourInOne(nn.Module):
    """Its matrices lie in one tensor, the output's first."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.heads, self.W, self.b = n_head, parameter(4, n_embd, n_embd), parameter(4, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        o, *qkv = zip(self.W, self.b, strict=True)
        q, k, v = (x @ W + b for W, b in qkv)
        return attend(q, k, v, self.heads) @ o[0] + o[1]


class ThreeInOne(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.heads, self.W, self.proj = n_head, parameter(3, n_embd, n_embd), nn.Linear(n_embd, n_embd)
        self.b = parameter(3, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (x @ W.T + b for W, b in zip(self.W, self.b, strict=True))
        return self.proj(attend(q, k, v, self.heads))


class Lists(nn.Module):
    """A model whose blocks are lists of each kind of layer, side by side."""

    sign = 1

    def __init__(self, vocab_size: int, n_ctx: int, n_embd: int, n_head: int, n_layer: int) -> None:
        super().__init__()
        self.heads = n_head
        self.wte, self.wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(n_ctx, n_embd)
        self.ln_f = nn.LayerNorm(n_embd)
        self.fill(n_embd, n_layer)

    def fill(self, d: int, layers: int) -> None:
        def each(make: type[nn.Module], *sizes: int) -> nn.ModuleList:
            return nn.ModuleList(make(*sizes) for _ in range(layers))

        self.ln_1, self.ln_2 = each(nn.LayerNorm, d), each(nn.LayerNorm, d)
        self.qkv, self.proj = each(nn.Linear, d, 3 * d), each(nn.Linear, d, d)
        self.fc, self.fc_out = each(nn.Linear, d, 4 * d), each(nn.Linear, 4 * d, d)

    def blocks(self, x: Tensor) -> Tensor:
        for ln_1, qkv, proj, ln_2, fc, out in zip(
            self.ln_1, self.qkv, self.proj, self.ln_2, self.fc, self.fc_out, strict=True
        ):
            q, k, v = qkv(ln_1(x)).chunk(3, -1)
            x = x + self.sign * proj(attend(q, k, v, self.heads))
            x = x + out(nn.functional.gelu(fc(ln_2(x)), approximate="tanh"))
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.wte(tokens) + self.wpe.weight[: tokens.shape[1]])
        return self.ln_f(x) @ self.wte.weight.T


class ListsAndWrong(Lists):
    sign = -1


class Stacks(Lists):
    """A model that has one tensor for all layers of a kind."""

    def fill(self, d: int, layers: int) -> None:
        for name, shape in {
            "ln1_g": (d,),
            "ln1_b": (d,),
            "qkv_w": (d, 3 * d),
            "qkv_b": (3 * d,),
            "proj_w": (d, d),
            "proj_b": (d,),
            "ln2_g": (d,),
            "ln2_b": (d,),
            "fc_w": (d, 4 * d),
            "fc_b": (4 * d,),
            "out_w": (4 * d, d),
            "out_b": (d,),
        }.items():
            setattr(self, name, parameter(layers, *shape))

    def blocks(self, x: Tensor) -> Tensor:
        p = dict(self.named_parameters())
        for i in range(len(p["qkv_w"])):
            h = norm(x, p["ln1_g"][i], p["ln1_b"][i])
            q, k, v = (h @ p["qkv_w"][i] + p["qkv_b"][i]).chunk(3, -1)
            x = x + attend(q, k, v, self.heads) @ p["proj_w"][i] + p["proj_b"][i]
            h = norm(x, p["ln2_g"][i], p["ln2_b"][i]) @ p["fc_w"][i] + p["fc_b"][i]
            x = x + nn.functional.gelu(h, approximate="tanh") @ p["out_w"][i] + p["out_b"][i]
        return x


@pytest.mark.parametrize(
    ("rung", "layer"),
    [
        ("block", OwnParameters),
        ("attention", FourInOne),
        ("attention", ThreeInOne),
        ("model", Lists),
        ("model", Stacks),
    ],
)
def test_right_layers_are_read_whatever_holds_their_parameters(rung: str, layer: type[nn.Module]) -> None:
    layers: dict[str, Any] = {rung: layer}
    tried = climb(cases=6, **layers).rungs[0]
    assert tried.passed, tried.text()


def test_the_pieces_of_one_tensor_are_named() -> None:
    tried = climb(attention=FourInOne, cases=1).rungs[0]
    assert tried.reading.startswith("W[1], W[2], W[3] are [")
    assert tried.reading.split(", ")[-1].startswith("W[0] is [")


@pytest.mark.parametrize(("rung", "layer"), [("block", OwnParametersAndWrong), ("model", ListsAndWrong)])
def test_no_grouping_makes_a_wrong_layer_right(
    rung: str, layer: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(try_layer, "explained", lambda layer, tried, *_: tried)  # only the verdict is wanted
    layers: dict[str, Any] = {rung: layer}
    assert climb(cases=2, **layers).rungs[0].status == "failed"
