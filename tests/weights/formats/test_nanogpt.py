"""nanoGPT's checkpoints: its names and sizes, read strictly and written so that its own module takes them."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gptladder import GPT2, GPT2Config
from gptladder.ladder.answers import randomize
from gptladder.ladder.rungs import draw_case
from gptladder.weights import CheckpointError, WeightsError, from_nanogpt, from_pretrained
from gptladder.weights.convert import convert
from gptladder.weights.files.write import write_folder
from gptladder.weights.sources import config_to_ours

FRESH = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
RANDOM = st.randoms(use_true_random=False)


class Reader(nn.Module):
    """What nanoGPT computes, from a checkpoint alone: its keys as parameters, the arithmetic by torch's functions."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        self.args = args
        d, bias = args["n_embd"], args["bias"]

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(d, eps=1e-5, bias=bias)

        def block() -> nn.ModuleDict:
            attn = nn.ModuleDict({"c_attn": nn.Linear(d, 3 * d, bias=bias), "c_proj": nn.Linear(d, d, bias=bias)})
            mlp = nn.ModuleDict({"c_fc": nn.Linear(d, 4 * d, bias=bias), "c_proj": nn.Linear(4 * d, d, bias=bias)})
            return nn.ModuleDict({"ln_1": norm(), "attn": attn, "ln_2": norm(), "mlp": mlp})

        wte, wpe = nn.Embedding(args["vocab_size"], d), nn.Embedding(args["block_size"], d)
        h = nn.ModuleList(block() for _ in range(args["n_layer"]))
        self.transformer = nn.ModuleDict({"wte": wte, "wpe": wpe, "h": h, "ln_f": norm()})
        self.lm_head = nn.Linear(d, args["vocab_size"], bias=False)
        self.lm_head.weight = wte.weight

    @torch.no_grad()
    def forward(self, tokens: Tensor, approximate: str = "none") -> Tensor:
        parts: Any = self.transformer
        x = parts["wte"](tokens) + parts["wpe"](torch.arange(tokens.shape[1]))
        for block in parts["h"]:
            qkv = block["attn"]["c_attn"](block["ln_1"](x))
            q, k, v = (z.unflatten(-1, (self.args["n_head"], -1)).transpose(1, 2) for z in qkv.chunk(3, -1))
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["attn"]["c_proj"](z.transpose(1, 2).flatten(2))
            x = x + block["mlp"]["c_proj"](F.gelu(block["mlp"]["c_fc"](block["ln_2"](x)), approximate=approximate))
        return self.lm_head(parts["ln_f"](x))


def trained(source: random.Random, **changes: Any) -> Reader:
    sizes = draw_case(source).config
    args = {
        "n_layer": sizes.n_layers,
        "n_head": sizes.n_heads,
        "n_embd": sizes.n_heads * sizes.d_head,
        "block_size": sizes.n_ctx,
        "bias": source.random() < 0.5,
        "vocab_size": sizes.d_vocab,
        "dropout": 0.0,
    }
    model = Reader({**args, **changes}).eval()
    randomize(model, torch.Generator().manual_seed(source.getrandbits(32)))
    return model


def checkpoint_of(model: Reader, *, prefix: str = "", mask: bool = False) -> dict[str, Any]:
    """What train.py saves."""
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    n = model.args["block_size"]
    if mask:
        state |= {f"{prefix}transformer.h.{i}.attn.bias": torch.ones(1, 1, n, n) for i in range(model.args["n_layer"])}
    optimizer = torch.optim.AdamW(model.parameters())
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "model_args": model.args,
        "iter_num": 7,
        "best_val_loss": torch.tensor(3.5),
        "config": {"dataset": "shakespeare_char", "compile": True},
    }


def tokens_for(model: Reader) -> Tensor:
    shape = (2, model.args["block_size"])
    return torch.randint(model.args["vocab_size"], shape, generator=torch.Generator().manual_seed(1))


@given(source=RANDOM)
@FRESH
def test_a_checkpoint_is_the_model_that_nanogpt_trained(tmp_path: Path, source: random.Random) -> None:
    model = trained(source)
    prefix, mask = source.choice(["", "_orig_mod."]), source.random() < 0.5
    torch.save(checkpoint_of(model, prefix=prefix, mask=mask), tmp_path / "ckpt.pt")
    ours, tokens = from_nanogpt(tmp_path / "ckpt.pt"), tokens_for(model)
    with torch.no_grad():
        assert (ours(tokens) - model(tokens)).abs().max() < 5e-5
        old = from_nanogpt(tmp_path / "ckpt.pt", act_fn="gelu_new")
        assert (old(tokens) - model(tokens, "tanh")).abs().max() < 5e-5
    assert ours.config.act_fn == "gelu"
    assert from_pretrained(tmp_path / "ckpt.pt").config == ours.config


@given(source=RANDOM)
@FRESH
def test_nanogpts_module_takes_what_is_written_and_back_no_bit_differs(tmp_path: Path, source: random.Random) -> None:
    model = trained(source)
    torch.save(checkpoint_of(model), tmp_path / "ckpt.pt")
    from_nanogpt(tmp_path / "ckpt.pt").save_pretrained(tmp_path / "hf", overwrite=True)
    convert(tmp_path / "hf", tmp_path / "out" / "ckpt.pt", to="nanogpt", overwrite=True)
    written = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    again = Reader(written["model_args"]).eval()
    again.load_state_dict(written["model"], strict=True)
    assert written["model_args"] == model.args
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert written["model"]["lm_head.weight"].data_ptr() == written["model"]["transformer.wte.weight"].data_ptr()


def test_the_padded_vocabulary_stays(tmp_path: Path) -> None:
    model = trained(random.Random(0), vocab_size=50304)
    torch.save(checkpoint_of(model), tmp_path / "ckpt.pt")
    ours = from_nanogpt(tmp_path / "ckpt.pt")
    assert ours.d_vocab == 50304
    assert torch.equal(ours.embed.W_E, model.lm_head.weight)


def test_the_optimizer_is_not_read_into_memory(tmp_path: Path) -> None:
    """Its state is twice the weights' size."""
    model = trained(random.Random(2))
    saved = checkpoint_of(model)
    saved["optimizer"]["state"] = {0: {"exp_avg": torch.zeros(250_000_000, dtype=torch.uint8)}}
    torch.save(saved, tmp_path / "ckpt.pt")
    before = resident()
    ours = from_nanogpt(tmp_path / "ckpt.pt")
    assert resident() - before < 50_000_000
    assert torch.equal(ours.embed.W_E, model.lm_head.weight)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_the_activation_is_kept_by_what_is_written_here(tmp_path: Path) -> None:
    """nanoGPT's file does not say which GELU it is; ours say it beside what nanoGPT reads."""
    model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=5))
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(WeightsError, match="computes gelu_new, and nanoGPT since June 2023 gelu"):
        convert(tmp_path / "hf", tmp_path / "ckpt.pt", to="nanogpt")
    assert not (tmp_path / "ckpt.pt").exists()
    convert(tmp_path / "hf", tmp_path / "ckpt.pt", to="nanogpt", act_fn="gelu_new")
    assert from_nanogpt(tmp_path / "ckpt.pt").config.act_fn == "gelu_new"
    assert from_nanogpt(tmp_path / "ckpt.pt", act_fn="gelu").config.act_fn == "gelu"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_word_embeddings": False}, "an output projection of its own"),
        ({"unembed_bias": True}, "an output bias b_U"),
        ({"d_mlp": 8}, "d_mlp=8"),
        ({"d_head": 3}, "n_heads * d_head other than d_model"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06"),
        ({"scale_attn_weights": False}, "scales its attention scores otherwise"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scales its attention scores otherwise"),
        ({"norm": "post"}, "post-norm"),
        ({"act_fn": "relu"}, "computes relu"),
    ],
)
def test_what_nanogpt_has_no_place_for_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_vocab": 11, "n_ctx": 5, "act_fn": "gelu", **changes}
    model = GPT2(GPT2Config(**config))
    randomize(model, torch.Generator().manual_seed(0))
    write_ours(model, tmp_path / "ours")
    with pytest.raises(WeightsError) as caught:
        convert(tmp_path / "ours", tmp_path / "ckpt.pt", to="nanogpt")
    assert message in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]


def write_ours(model: GPT2, folder: Path) -> None:
    write_folder(folder, config_to_ours(model.config), model.state_dict())


def damaged(change: str) -> dict[str, Any]:
    saved = copy.deepcopy(checkpoint_of(trained(random.Random(1), bias=True)))
    state, args = saved["model"], saved["model_args"]
    key = "transformer.h.0.mlp.c_fc.weight"
    if change == "missing":
        del state[key]
    elif change == "left over":
        state["transformer.h.0.lora"] = state[key]
    elif change == "twice":
        state["_orig_mod." + key] = state[key]
    elif change == "transposed":
        state[key] = state[key].T.contiguous()
    elif change == "untied":
        state["lm_head.weight"] = state["lm_head.weight"] + 1
    elif change == "biases":
        args["bias"] = False
    elif change == "field":
        args["use_rmsnorm"] = True
    elif change == "no sizes":
        del args["n_head"]
    elif change == "no arguments":
        saved["model_args"] = None
    elif change == "heads":
        args["n_head"] = 1000
    elif change == "text":
        args["n_embd"] = "12"
    elif change == "not tensors":
        saved["model"] = {"a": 1}
    elif change == "no model":
        del saved["model"]
    elif change == "a tensor":
        saved["model"] = torch.ones(3)
    elif change == "nested":
        saved["config"] = [saved["config"]]
        saved["config"].append(saved["config"])
        del state[key]
    return saved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "missing: h.0.mlp.c_fc.weight"),
        ("left over", "not a parameter of this model: h.0.lora"),
        ("twice", "h.0.mlp.c_fc.weight is there twice"),
        ("transposed", "h.0.mlp.c_fc.weight has the shape"),
        ("untied", "lm_head.weight differs from wte.weight, but nanoGPT ties them"),
        ("biases", "model_args has bias=False, but h.0.ln_1.bias is there"),
        ("field", "the field use_rmsnorm is not nanoGPT's"),
        ("no sizes", "model_args must have"),
        ("no arguments", "model_args must have"),
        ("heads", "n_heads=1000 does not divide"),
        ("text", "model_args: "),
        ("not tensors", "holds other things than tensors under 'a'"),
        ("no model", "is no checkpoint of a training run"),
        ("a tensor", "is no checkpoint of a training run"),
        ("nested", "nested more than 100 deep"),
    ],
)
def test_a_checkpoint_that_is_wrong_is_named_with_its_fault(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "ckpt.pt"
    torch.save(damaged(change), path)
    with pytest.raises((WeightsError, CheckpointError)) as caught:
        from_nanogpt(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_format_is_not_taken_for_it(tmp_path: Path) -> None:
    GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=5)).save_pretrained(tmp_path / "hf")
    with pytest.raises(WeightsError, match="is not a nanoGPT checkpoint"):
        from_nanogpt(tmp_path / "hf")
