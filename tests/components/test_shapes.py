"""The shape check: it is on by default, names the layer's own sizes, and checks each shape once."""

import inspect
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptladder.components import Block, TypeCheckError, typecheck
from gptladder.components.shapes import shape_checked


class Layer(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.calls = 0

    @shape_checked
    def forward(
        self,
        x: Float[Tensor, "batch width={self.width}"],
        ids: Int[Tensor, "batch"] | None = None,
        *,
        double: bool = False,
    ) -> Float[Tensor, "batch width={self.width}"]:
        self.calls += 1
        return x[:, :-1] if double else x


GOOD = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.zeros(2, 5),), {}, r"'x'.*f32\[2,5\].*width.*This Layer has width=4"),
        ((torch.zeros(2, 4).long(),), {}, r"'x'.*i64\[2,4\]"),
        ((GOOD, torch.zeros(3).long()), {}, r"'ids'.*i64\[3\].*batch=2"),
        ((GOOD,), {"ids": torch.zeros(2)}, r"'ids'.*f32\[2\]"),
        ((GOOD,), {"double": 1}, "'double'"),
        (([0.0],), {}, "'x'"),
        ((GOOD,), {"double": True}, r"return.*width"),
    ],
)
def test_a_wrong_argument_or_result_is_named(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeCheckError, match=f"(?s){message}"):
        Layer()(*args, **kwargs)


def test_it_runs_once_for_each_shape_and_still_sees_every_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer()
    for shape in ((2, 4), (2, 4), (3, 4)):
        layer(torch.zeros(shape))
    assert len(layer.__dict__["_shapes_seen"]["forward"]) == 2
    with pytest.raises(TypeCheckError):
        layer(torch.zeros(2, 5))
    with pytest.raises(TypeCheckError):  # a refused shape is refused again
        layer(torch.zeros(2, 5))
    with pytest.raises(TypeCheckError):  # the same shape in another dtype is another
        layer(torch.zeros(2, 4).int())


def test_layers_of_one_class_do_not_share_what_they_have_seen() -> None:
    Layer(4)(GOOD)
    with pytest.raises(TypeCheckError, match="This Layer has width=5"):
        Layer(5)(GOOD)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptladder.components.shapes._MOST_SHAPES_REMEMBERED", 3)
    layer = Layer()
    remembered = []
    for batch in range(1, 6):
        layer(torch.zeros(batch, 4))
        remembered.append(len(layer.__dict__["_shapes_seen"]["forward"]))
    assert remembered == [1, 2, 3, 1, 2]


def test_it_can_be_switched_off_for_a_block() -> None:
    layer = Layer()
    with typecheck(False):
        assert layer(torch.zeros(2, 9)).shape == (2, 9)
        with typecheck(True), pytest.raises(TypeCheckError):
            layer(torch.zeros(2, 9))
    with pytest.raises(TypeCheckError):
        layer(torch.zeros(2, 9))


def test_the_environment_switches_it_off() -> None:
    code = (
        "import torch; from gptladder.components import LayerNorm\n"
        "try: LayerNorm(d_model=4)(torch.zeros(4, 4))\n"
        "except Exception as error: print(type(error).__name__)\n"
        "else: print('taken')\n"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "GPTLADDER_TYPECHECK": switch},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for switch in ("0", "1")
    ]
    assert printed == ["taken", "TypeCheckError"]


def test_an_inner_layers_error_tells_of_the_inner_layer_alone() -> None:
    block: Any = Block(d_model=6, n_heads=2)
    block.mlp = nn.Sequential(Layer(4))
    with pytest.raises(TypeCheckError) as caught:
        block(torch.zeros(2, 3, 6))
    assert "This Layer has width=4" in str(caught.value)
    assert "This Block" not in str(caught.value)


def test_it_breaks_no_graph_and_costs_no_compilation_for_each_layer() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    layers = [nn.Sequential(Layer(), nn.Linear(4, 4)) for _ in range(12)]
    for layer in layers:
        layer.compile(fullgraph=True, backend=backend)
        assert layer(GOOD).shape == (2, 4)
    assert len(graphs) <= 2  # the first, and at most one more for what differs


def test_the_signature_and_the_docstring_stay() -> None:
    assert (Block.forward.__doc__ or "").startswith("Return the residual stream")
    assert Block.forward.__name__ == "forward"


def test_a_checked_method_keeps_its_name_and_its_parameters() -> None:
    method = Block.forward
    assert method.__name__ == "forward"
    assert (method.__doc__ or "").startswith("Return ")
    assert list(inspect.signature(Layer.forward).parameters) == ["self", "x", "ids", "double"]
