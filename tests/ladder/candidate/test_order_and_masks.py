"""Layers that take the sequence first are judged in that order; layers that take a mask get one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gptladder.ladder import climb
from gptladder.ladder.candidate.finder import find_layers
from gptladder.ladder.candidate.source import load


class SequenceFirst(nn.Module):
    """On [seq batch d_model], like ``nn.MultiheadAttention`` without ``batch_first``."""

    activation = "tanh"

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attn = nn.MultiheadAttention(d_model, n_heads)
        self.mlp = nn.ModuleDict({"fc": nn.Linear(d_model, 4 * d_model), "proj": nn.Linear(4 * d_model, d_model)})

    def mask(self, x: Tensor) -> Tensor:
        return torch.full((len(x), len(x)), -torch.inf, dtype=x.dtype).triu(1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, attn_mask=self.mask(x), need_weights=False)[0]
        h = self.mlp["fc"](self.ln_2(x))
        return x + self.mlp["proj"](nn.functional.gelu(h, approximate=self.activation))


class WithErf(SequenceFirst):
    activation = "none"


class Model(nn.Module):
    def __init__(self, d_model: int, n_heads: int, n_layers: int, d_vocab: int, n_ctx: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(d_vocab, d_model), nn.Embedding(n_ctx, d_model)
        self.h = nn.ModuleList(SequenceFirst(d_model, n_heads) for _ in range(n_layers))
        self.ln_f, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, d_vocab, bias=False)

    def positions(self, tokens: Tensor) -> Tensor:
        return torch.arange(len(tokens))[:, None]

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(self.positions(tokens))
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


class AttendsAlongTheBatch(Model):
    """Its positions run along the second axis, as in GPT-2; its blocks were built for the first."""

    def positions(self, tokens: Tensor) -> Tensor:
        return torch.arange(tokens.shape[1])[None]


def test_a_layer_that_takes_the_sequence_first_is_judged_in_that_order() -> None:
    block = climb(block=SequenceFirst, cases=5).rungs[0]
    assert block.passed, block.text()
    note = "Forward takes [seq batch d_model], and was judged in that order; the sequence comes second in GPT-2: "
    assert block.note.startswith(note), block.note
    model = climb(model=Model, cases=2).rungs[0]
    assert model.passed, model.text()
    assert "Forward takes [seq batch], and" in model.note


def test_what_is_wrong_beside_the_order_is_named() -> None:
    wrong = climb(block=WithErf, cases=2).rungs[0]
    assert wrong.mistakes == ("the block's MLP: erf GELU for tanh GELU",)
    assert "the output of attention" in wrong.text(), "parts are compared in the same order"


def test_a_model_that_attends_along_the_batch_stays_wrong() -> None:
    wrong = climb(model=AttendsAlongTheBatch, cases=2).rungs[0]
    assert wrong.status == "failed"
    assert "seq batch" not in wrong.note


class Attention(nn.Module):
    """Attention that flattens z without a transpose where ``mixes`` is set."""

    mixes = False

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head, self.qkv, self.proj = n_head, nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in self.qkv(x).unflatten(-1, (self.n_head, -1)).chunk(3, -1))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        z = (scores if mask is None else scores.masked_fill(mask == 0, -torch.inf)).softmax(-1) @ v
        return self.proj((z if self.mixes else z.transpose(1, 2)).reshape(x.shape))


class OfAFutureMask(Attention):
    mixes = True

    def forward(self, x: Tensor, padding_mask: None = None, future_mask: Tensor | None = None) -> Tensor:
        assert padding_mask is None
        return self.attend(x, future_mask)


def test_a_wrong_layer_that_takes_a_mask_is_judged_with_one() -> None:
    wrong = climb(attention=OfAFutureMask, cases=2).rungs[0]
    assert wrong.mistakes == ("z flattened without a transpose",)
    assert "(future_mask: ones where a query may look)" in wrong.note


class OfAnOddMask(Attention):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        assert mask.shape[2] == 1
        return self.attend(x, mask[..., 0])


class OfAChoice(Attention):
    """Its callers decide whether it is causal."""

    def forward(self, x: Tensor, is_causal: bool = False) -> Tensor:
        return self.attend(x, torch.ones(x.shape[1], x.shape[1]).tril() if is_causal else None)


class OfARequiredChoice(Attention):
    def forward(self, x: Tensor, use_mask: bool) -> Tensor:
        return self.attend(x, torch.ones(x.shape[1], x.shape[1]).tril() if use_mask else None)


class FromItsConstructor(Attention):
    def __init__(self, n_embd: int, n_head: int, attn_mask: Tensor | None = None) -> None:
        super().__init__(n_embd, n_head)
        self.register_buffer("attn_mask", attn_mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self._buffers["attn_mask"])


class KeepsACopy(FromItsConstructor):
    def __init__(self, n_embd: int, n_head: int, attn_mask: Tensor | None = None) -> None:
        super().__init__(n_embd, n_head, None if attn_mask is None else attn_mask.clone())


def test_a_mask_has_the_shape_and_comes_the_way_that_a_layer_asks_for() -> None:
    odd = climb(attention=OfAnOddMask, cases=2).rungs[0]
    assert odd.passed, odd.text()
    for layer, name in ((OfAChoice, "is_causal"), (OfARequiredChoice, "use_mask")):
        chosen = climb(attention=layer, cases=2).rungs[0]
        assert chosen.passed, chosen.text()
        assert chosen.note.startswith(f"Forward was given {name}=True. GPT-2's weights do not fit as they are stored")
    built = climb(attention=FromItsConstructor, cases=5).rungs[0]
    assert built.passed, built.text()
    assert "The constructor was given a causal mask (attn_mask: ones where a query may look" in built.note
    copied = climb(attention=KeepsACopy, cases=2).rungs[0]
    assert copied.mistakes == ("no causal mask",), "one mask would be too short for the next case"


FLAGGED = """
import pytest
import torch
from torch import nn


class SelfAttention(nn.Module):
    def __init__(self, emb, heads, mask):
        super().__init__()
        assert mask is True
        self.qkv, self.proj = nn.Linear(emb, 3 * emb), nn.Linear(emb, emb)
"""


def test_a_mask_that_a_constructor_requires_is_a_choice(tmp_path: Path) -> None:
    file = tmp_path / "flagged.py"
    file.write_text(FLAGGED)
    assert find_layers(load(file), {}) == {"attention": ["SelfAttention"]}


class Unmerged(Attention):
    """Its heads cannot be merged, whatever mask it is given."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in self.qkv(x).unflatten(-1, (self.n_head, -1)).chunk(3, -1))
        z = (q @ k.mT).masked_fill(mask == 0, -torch.inf).softmax(-1) @ v
        return self.proj(z.mT.view(x.shape))


def test_an_error_that_most_masks_bring_about_is_the_layers_own() -> None:
    wrong = climb(attention=Unmerged, cases=1).rungs[0]
    assert wrong.status == "failed"
    assert "view size is not compatible" in wrong.text()


class OfPadding(Attention):
    """It makes its own causal mask, on the wrong side; one that it is given raises."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in self.qkv(x).unflatten(-1, (self.n_head, -1)).chunk(3, -1))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).tril(-1).bool(), -torch.inf)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_a_mask_with_a_default_is_left_out_and_names_mean_what_they_say() -> None:
    wrong = climb(attention=OfPadding, cases=2).rungs[0]
    assert wrong.mistakes == ("mask on the wrong side",), wrong.text()
    assert "the order is" not in wrong.note


class HeadsInAList(nn.Module):
    """Its heads multiply with ``bmm``, which takes three axes, and hide where the mask is True."""

    def __init__(self, d_model: int, n_heads: int, d_k: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(d_model, d_k) for name in ("query", "key", "value")}) for _ in range(n_heads)
        )
        self.out = nn.Linear(n_heads * d_k, d_model)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        found = []
        for head in self.heads:
            q, k, v = (part(x) for part in head.values())  # pyright: ignore[reportCallIssue]
            scores = torch.bmm(q, k.transpose(1, 2)) / q.shape[-1] ** 0.5
            scores = scores if mask is None else scores.masked_fill(mask, -torch.inf)
            found.append(torch.bmm(scores.softmax(-1), v))
        return self.out(torch.cat(found, -1))


def test_the_mask_that_fits_is_used_in_cases_of_one_head_too() -> None:
    result = climb(attention=HeadsInAList)
    assert result.passed, str(result)
    assert "True where a query may not look, [seq seq]" in result.rungs[0].note


class Padded(nn.Module):
    """It hides the future, and what the mask that it requires marks as padding."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.heads, self.hides_future = n_heads, True
        self.qkv, self.proj = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)

    def with_padding(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(mask[:, None, None] == 0, -torch.inf)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        scores = q @ k.mT / k.shape[-1] ** 0.5
        if self.hides_future:
            scores = scores.masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -torch.inf)
        z = self.with_padding(scores, attention_mask).softmax(-1) @ v
        return self.proj(z.transpose(1, 2).flatten(2))


class Added(Padded):
    def with_padding(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores + mask


class Optional(Padded):
    def with_padding(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores if mask is None else super().with_padding(scores, mask.any(1, keepdim=True))


class SeesTheFuture(Padded):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.hides_future = False


@pytest.mark.parametrize(
    ("layer", "given"),
    [(Padded, "ones for all keys, [batch seq]"), (Added, "zeros, which are added"), (Optional, "None")],
)
def test_a_layer_that_masks_by_itself_gets_a_mask_that_hides_nothing(layer: type[nn.Module], given: str) -> None:
    result = climb(attention=layer)
    assert result.passed, str(result)
    assert f"Forward was given a mask that hides nothing (attention_mask: {given})" in result.rungs[0].note


def test_a_layer_whose_mask_is_for_padding_alone_has_no_causal_mask() -> None:
    tried = climb(attention=SeesTheFuture).rungs[0]
    assert tried.fault is not None
    assert "output is off" in str(tried.fault)
