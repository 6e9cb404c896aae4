import copy

import pytest
import torch
from torch import nn

from gptladder.assembly import GPT2, GPT2Config
from gptladder.training.optim import adamw, clip_gradient_norm, decay_groups

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


def test_gradients_are_scaled_to_the_limit_and_their_norm_told() -> None:
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
