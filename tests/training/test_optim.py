"""The optimizers update each parameter as their papers say, save and load exactly, and refuse a state that is wrong."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptladder.assembly import GPT2, GPT2Config
from gptladder.components import MLP
from gptladder.training.muon import Muon, orthogonalize
from gptladder.training.optim import adamw, clip_gradient_norm, decay_groups, make_optimizer
from gptladder.training.presets import OptimConfig, OptimizerName, Precision

CONFIG = GPT2Config(d_model=8, n_layers=2, n_heads=2, d_vocab=11, n_ctx=5, unembed_bias=True)


def test_matrices_decay_and_biases_and_gains_do_not() -> None:
    model = GPT2(CONFIG)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    decayed, exempt = ({name_of[parameter] for parameter in group} for group in decay_groups(model))
    matrices = {"attn.W_QKV", "attn.W_O", "mlp.W_in", "mlp.W_out"}
    assert decayed == {"embed.W_E", "pos_embed.W_pos"} | {f"blocks.{i}.{name}" for i in (0, 1) for name in matrices}
    vectors = {"attn.b_QKV", "attn.b_O", "mlp.b_in", "mlp.b_out", "ln1.w", "ln1.b", "ln2.w", "ln2.b"}
    assert exempt == {"ln_final.w", "ln_final.b", "unembed.b_U"} | {
        f"blocks.{i}.{name}" for i in (0, 1) for name in vectors
    }


def test_the_bias_of_another_librarys_layer_does_not_decay() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W, self.b = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(3))

    layer = Layer()
    decayed, exempt = decay_groups(layer)
    assert [each.shape for each in decayed] == [(2, 3)]
    assert [each.shape for each in exempt] == [(3,)]


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_updated_once(tied: bool) -> None:
    model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=5, tie_word_embeddings=tied))
    optimizer = adamw(model, lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed, _ = decay_groups(model)
    decayed_names = {name for name, parameter in model.named_parameters() if any(parameter is d for d in decayed)}
    for name, now in model.state_dict().items():
        # With no gradient, what is left of an update is the decay: 0.1 * 0.5 of the weight.
        torch.testing.assert_close(now, before[name] * (0.95 if name in decayed_names else 1.0))


@pytest.mark.parametrize("contiguous", [True, False])
def test_is_adamw_whatever_the_layout_of_a_parameter(contiguous: bool) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            weight = torch.randn(5, 7, dtype=torch.float64)
            self.W = nn.Parameter(weight if contiguous else weight.T.contiguous().T)

    ours, reference = Layer(), Layer()
    optimizers = [
        adamw(ours, lr=0.1, betas=(0.9, 0.95), weight_decay=0.1),
        torch.optim.AdamW(
            reference.parameters(), lr=0.1, betas=(0.9, 0.95), weight_decay=0.1, foreach=False, fused=False
        ),
    ]
    for step in range(3):
        for layer, optimizer in zip((ours, reference), optimizers, strict=True):
            layer.W.grad = torch.arange(35.0, dtype=torch.float64).reshape(5, 7).sub(17 + step)
            optimizer.step()
    torch.testing.assert_close(ours.W, reference.W, atol=1e-12, rtol=0)


def test_the_kernel_is_fused() -> None:
    assert adamw(GPT2(CONFIG), lr=0.1, betas=(0.9, 0.99), weight_decay=0.1).defaults["fused"]


def test_gradients_are_scaled_to_the_limit_and_their_norm_returned() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(4))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradient_norm(parameters, 10.0) == 5
    assert parameters[1].grad == 4
    assert clip_gradient_norm(parameters, 1.0) == 5
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.8]))
    assert clip_gradient_norm(parameters, None) == pytest.approx(1.0)


def test_a_gradient_that_is_not_finite_is_left_for_the_loop_to_see() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([torch.inf, 1.0])
    assert clip_gradient_norm([parameter], 1.0).isinf()
    assert parameter.grad.tolist() == [torch.inf, 1.0]


def reference_step(
    weight: Tensor, momentum: Tensor, gradient: Tensor, *, lr: float, weight_decay: float
) -> tuple[Tensor, Tensor]:
    """One step of Muon for one matrix [inputs outputs], written out from Jordan et al. 2024."""
    momentum = 0.95 * momentum + 0.05 * gradient
    x = 0.95 * momentum + 0.05 * gradient
    x = x / x.pow(2).sum().sqrt()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    inputs, outputs = weight.shape
    return weight - lr * weight_decay * weight - lr * max(1, outputs / inputs) ** 0.5 * x, momentum


MATRICES = {
    # How a test cuts each parameter into matrices [inputs outputs], without the pattern that the optimizer uses.
    "attn.W_QKV": lambda w: [w[:, j].reshape(w.shape[0], -1) for j in range(3)],
    "attn.W_O": lambda w: [w.reshape(-1, w.shape[-1])],
    "mlp.W_in": lambda w: [w],
    "mlp.W_out": lambda w: [w],
}


@pytest.mark.parametrize(("d_head", "d_mlp"), [(3, 5), (4, 13), (5, 13)])
def test_muon_is_the_reference_in_float64(d_head: int, d_mlp: int) -> None:
    torch.manual_seed(0)
    config = GPT2Config(d_model=8, n_layers=2, n_heads=2, d_head=d_head, d_mlp=d_mlp, d_vocab=11, n_ctx=5)
    model, others = (GPT2(config).double() for _ in range(2))
    others.load_state_dict(model.state_dict())
    optimizer = make_optimizer(model, OptimConfig(optimizer="muon", muon_lr=0.03, lr=0.02, max_steps=1))
    plain = adamw(others, lr=0.02, betas=(0.9, 0.999), weight_decay=0.01)
    momenta: dict[tuple[str, int], Tensor] = {}
    for step in range(3):
        expected = {}
        for (name, parameter), same in zip(model.named_parameters(), others.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter) * 10.0**-step
            same.grad = parameter.grad.clone()
            for kind, cut in MATRICES.items():
                if name.endswith(kind):
                    for j, (matrix, gradient) in enumerate(zip(cut(parameter), cut(parameter.grad), strict=True)):
                        before = momenta.get((name, j), torch.zeros_like(matrix))
                        expected[name, j], momenta[name, j] = reference_step(
                            matrix.detach(), before, gradient, lr=0.03, weight_decay=0.01
                        )
        optimizer.step()
        plain.step()
        for (name, parameter), same in zip(model.named_parameters(), others.parameters(), strict=True):
            cut = next((cut for kind, cut in MATRICES.items() if name.endswith(kind)), None)
            if cut is None:  # embeddings, biases, gains: AdamW, to the bit
                assert torch.equal(parameter, same), name
            else:
                for j, matrix in enumerate(cut(parameter.detach())):
                    torch.testing.assert_close(matrix, expected[name, j], atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8), (5, 9), (9, 5)])
def test_muon_is_that_of_pytorch_in_bfloat16(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.empty(shape).T)
    theirs.data.copy_(ours.data.T)  # torch.optim.Muon has outputs as rows
    group = {"params": [ours], "layout": "i o -> 1 i o", "lr": 0.1, "weight_decay": 0.2, "momentum": 0.95, "bf16": True}
    optimizers = [
        Muon([group], torch.optim.AdamW([nn.Parameter(torch.zeros(1))])),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2, momentum=0.95),
    ]
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.T.clone()
        for optimizer in optimizers:
            optimizer.step()
    # Both round to bfloat16 (a relative 0.004) at each product, in another order of additions.
    torch.testing.assert_close(ours, theirs.T, atol=0.005, rtol=0)


def test_orthogonalize_keeps_singular_vectors_and_levels_singular_values() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(4, 7, 12, dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ orthogonalize(matrices) @ v.mT
    values = inner.diagonal(dim1=1, dim2=2)
    assert ((values > 0.5) & (values < 1.3)).all()
    torch.testing.assert_close(inner, torch.diag_embed(values), atol=1e-12, rtol=0)
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


def test_bf16_follows_the_precision_of_the_run() -> None:
    precisions: dict[Precision, bool] = {"bf16": True, "float32": False}
    for precision, bf16 in precisions.items():
        config = OptimConfig(optimizer="muon", precision=precision, max_steps=1)
        groups = make_optimizer(GPT2(CONFIG), config).param_groups
        assert {group["bf16"] for group in groups if "layout" in group} == {bf16}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_parameter_has_one_group_with_its_decay_and_rate(optimizer: OptimizerName) -> None:
    model = GPT2(CONFIG)
    config = OptimConfig(optimizer=optimizer, lr=0.3, muon_lr=0.7, weight_decay=0.5, max_steps=1)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    decayed, _ = decay_groups(model)
    seen = set()
    for group in make_optimizer(model, config).param_groups:
        assert group["lr"] == group["initial_lr"]
        for parameter in group["params"]:
            name = name_of[parameter]
            assert name not in seen
            seen.add(name)
            by_muon = optimizer == "muon" and any(name.endswith(kind) for kind in MATRICES)
            assert ("layout" in group) == by_muon
            assert group["lr"] == (0.7 if by_muon else 0.3)
            assert group["weight_decay"] == (0.5 if any(parameter is d for d in decayed) else 0)
    assert seen == set(name_of.values())


def run_steps(model: GPT2, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps on gradients that depend on the step alone, at a rate that falls."""
    for step in steps:
        source = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=source)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 - step / 10)
        optimizer.step()


def model_and_optimizer(optimizer: OptimizerName, **options: Any) -> tuple[GPT2, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = GPT2(CONFIG)
    return model, make_optimizer(model, OptimConfig(optimizer=optimizer, max_steps=1, **options))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_saved_and_loaded_optimizer_continues_bit_for_bit(name: OptimizerName, tmp_path: Path) -> None:
    whole, optimizer = model_and_optimizer(name)
    run_steps(whole, optimizer, range(6))
    half, first = model_and_optimizer(name)
    run_steps(half, first, range(3))
    torch.save((half.state_dict(), first.state_dict()), tmp_path / "state.pt")
    again, second = model_and_optimizer(name)
    weights, state = torch.load(tmp_path / "state.pt")
    again.load_state_dict(weights)
    second.load_state_dict(state)
    run_steps(again, second, range(3, 6))
    for parameter, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other)
    for (key, before), (other_key, after) in zip(
        sorted(optimizer.state_dict()["state"].items()), sorted(second.state_dict()["state"].items()), strict=True
    ):
        assert key == other_key
        assert before.keys() == after.keys()
        assert all(torch.equal(before[part], after[part]) for part in before)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_options_of_the_configuration_win_over_saved_ones(name: OptimizerName) -> None:
    model, optimizer = model_and_optimizer(name)
    run_steps(model, optimizer, range(1))
    changed: dict[str, Any] = {"lr": 0.5, "muon_lr": 0.6, "muon_momentum": 0.7, "beta1": 0.8, "weight_decay": 0.25}
    _, other = model_and_optimizer(name, **changed)
    expected = [{k: v for k, v in group.items() if k != "params"} for group in other.param_groups]
    other.load_state_dict(optimizer.state_dict())
    assert [{k: v for k, v in group.items() if k != "params"} for group in other.param_groups] == expected


@pytest.mark.parametrize("saved", ["adamw", "muon"])
def test_the_state_of_the_other_optimizer_is_refused(saved: OptimizerName) -> None:
    model, optimizer = model_and_optimizer(saved)
    run_steps(model, optimizer, range(1))
    _, other = model_and_optimizer("muon" if saved == "adamw" else "adamw")
    with pytest.raises(ValueError, match=f"continue with --optimizer {saved}"):
        other.load_state_dict(optimizer.state_dict())


def change_state(state: dict[str, Any], part: str, value: Any) -> None:
    """Replace a part of the state of the first parameter that has it; without a value, remove it."""
    entry = next(entry for entry in state["state"].values() if part in entry)
    if value is None:
        del entry[part]
    else:
        entry[part] = value


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.zeros(1), r"torch\.float32 \[1\] as "),
        (torch.zeros(0), r"torch\.float32 \[0\] as "),
        (torch.zeros(8, 8, 8, 8), r"torch\.float32 \[8, 8, 8, 8\] as "),
        (torch.zeros(2, dtype=torch.int64), r"torch\.int64 \[2\] as "),
        (3.0, "a float as "),
        ("x", "a str as "),
        (None, ""),
    ],
)
def test_state_of_another_shape_is_refused(name: OptimizerName, value: Any, found: str) -> None:
    parts = ["exp_avg", "exp_avg_sq", "step"] + (["momentum_buffer"] if name == "muon" else [])
    for part in parts:
        model, optimizer = model_and_optimizer(name)
        run_steps(model, optimizer, range(1))
        state = copy.deepcopy(optimizer.state_dict())
        change_state(state, part, value)
        before = copy.deepcopy(optimizer.state_dict()["state"])
        with pytest.raises(ValueError, match=f"{found}.*damaged"):
            optimizer.load_state_dict(state)
        for number, entry in optimizer.state_dict()["state"].items():
            assert all(torch.equal(entry[key], before[number][key]) for key in entry)


@pytest.mark.parametrize(
    ("entry", "found"),
    [({}, "nothing"), ({"step": torch.zeros(()), "exp_avg": torch.zeros(11, 8)}, "step, exp_avg"), ([1], "a list")],
)
def test_an_entry_of_other_parts_is_refused_with_their_names(entry: Any, found: str) -> None:
    model, optimizer = model_and_optimizer("adamw")
    run_steps(model, optimizer, range(1))
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0] = entry
    with pytest.raises(
        ValueError, match=f"parameter 0 has {found}, and needs exp_avg, exp_avg_sq, step: it is damaged"
    ):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_of_another_model_is_refused(name: OptimizerName) -> None:
    wider = GPT2(dataclasses.replace(CONFIG, d_mlp=40))
    deeper = GPT2(dataclasses.replace(CONFIG, n_layers=3))
    for model, message in (
        (wider, "it is damaged, or belongs to another model"),
        (deeper, r"has groups of \[.*\] parameters, and the model needs \[.*\]: it belongs to another model"),
    ):
        other = make_optimizer(model, OptimConfig(optimizer=name, max_steps=1))
        run_steps(model, other, range(1))
        _, optimizer = model_and_optimizer(name)
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(other.state_dict())
    _, optimizer = model_and_optimizer(name)
    state = optimizer.state_dict()
    state["state"][99] = {"momentum_buffer": torch.zeros(1)}
    with pytest.raises(ValueError, match="entries that belong to no parameter"):
        optimizer.load_state_dict(state)


def test_muon_leaves_parameters_without_gradient_alone() -> None:
    model, optimizer = model_and_optimizer("muon")
    frozen = model.blocks[0].attn.W_QKV
    before = {parameter: parameter.detach().clone() for parameter in model.parameters()}
    for parameter in model.parameters():
        if parameter is not frozen:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in model.parameters():
        assert torch.equal(parameter, before[parameter]) == (parameter is frozen)
    assert not optimizer.state[frozen]


def test_muon_works_with_pytorchs_schedulers() -> None:
    model, optimizer = model_and_optimizer("muon", lr=0.5, muon_lr=0.25)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    run_steps(model, optimizer, range(1))
    scheduler.step()
    assert {group["lr"] for group in optimizer.param_groups} == {0.25, 0.125}


def test_muon_trains_a_layer_whose_parameters_are_not_contiguous() -> None:
    torch.manual_seed(0)
    mlp, other = (MLP(d_model=4).double() for _ in range(2))
    other.load_state_dict(mlp.state_dict())
    mlp.W_in = nn.Parameter(mlp.W_in.detach().T.contiguous().T)
    config = OptimConfig(optimizer="muon", max_steps=1)
    for layer in (mlp, other):
        optimizer = make_optimizer(layer, config)
        for parameter in layer.parameters():
            parameter.grad = torch.linspace(-1, 1, parameter.numel(), dtype=torch.float64).view(parameter.shape) ** 2
        optimizer.step()
    torch.testing.assert_close(mlp.W_in, other.W_in, atol=1e-12, rtol=0)
