"""What a layer takes from a library is noted: classes by their ancestors, functions by the calls."""

import torch
import torch.nn.functional as F
from torch import nn

from gptladder.components import Attention
from gptladder.ladder.candidate.borrowed import BorrowedCalls, borrowed_classes


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
    with BorrowedCalls("attention") as calls:
        F.scaled_dot_product_attention(q, q, q)
        F.layer_norm(q, (4,))
    assert calls.names == {"torch.scaled_dot_product_attention"}
    with BorrowedCalls("layer-norm") as calls:
        F.layer_norm(q, (4,))
    assert calls.names == {"torch.layer_norm"}
    with BorrowedCalls("mlp") as calls:
        F.layer_norm(q, (4,))
    assert calls.names == set()


class Delegates(nn.Module):
    """Hides a library's layer where `nn.Module.modules` does not find it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [Attention(d_model=4, n_heads=2)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hidden[0](x)


def test_a_call_of_a_library_is_noted_where_no_module_shows_it() -> None:
    layer = Delegates()
    assert borrowed_classes(layer, "attention") == set()
    with BorrowedCalls("attention") as calls:
        layer(torch.zeros(1, 3, 4))
    assert "gptladder.Attention" in calls.names
    with BorrowedCalls("attention", libraries=False) as calls:
        layer(torch.zeros(1, 3, 4))
    assert not any(name.startswith("gptladder") for name in calls.names)
    with BorrowedCalls("attention") as calls:
        nn.Linear(4, 4)(torch.zeros(1, 3, 4))
    assert calls.names == set()
