"""What a layer takes from a library is noted: classes by ancestry, fused functions by the calls made."""

import torch
import torch.nn.functional as F
from torch import nn

from gptladder.components import Attention
from gptladder.ladder.candidate.borrowed import FusedCalls, borrowed_classes


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Derived(nn.MultiheadAttention):
    pass


def test_classes_of_libraries_are_found_by_ancestry() -> None:
    assert "gptladder.Attention" in borrowed_classes(Wrapped(Attention(d_model=4, n_heads=2)), "attention")
    assert borrowed_classes(Wrapped(Derived(4, 2)), "attention") == {"torch.nn.MultiheadAttention"}
    assert borrowed_classes(Wrapped(nn.Linear(4, 4)), "attention") == set()
    assert borrowed_classes(Wrapped(nn.LayerNorm(4)), "block") == set()
    assert borrowed_classes(nn.LayerNorm(4), "layer-norm") == {"torch.nn.LayerNorm"}


def test_fused_functions_are_noted_for_their_rung_alone() -> None:
    q = torch.zeros(1, 2, 3, 4)
    with FusedCalls("attention") as fused:
        F.scaled_dot_product_attention(q, q, q)
        F.layer_norm(q, (4,))
    assert fused.names == {"torch.scaled_dot_product_attention"}
    with FusedCalls("layer-norm") as fused:
        F.layer_norm(q, (4,))
    assert fused.names == {"torch.layer_norm"}
    with FusedCalls("mlp") as fused:
        F.layer_norm(q, (4,))
    assert fused.names == set()
