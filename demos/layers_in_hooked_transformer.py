"""Replace layers of a TransformerLens ``HookedTransformer`` by ours: logits, hooks, generation.

    python demos/layers_in_hooked_transformer.py [--model gpt2]

The parameters have the same names, so our layers load its state dict. TransformerLens calls three layers differently,
so a small subclass of each translates the call. Every `Tap` is replaced by a `HookPoint`. After that, TransformerLens's
own functions hook, cache and patch the model as before.
"""

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from gptladder import GPT2, GPT2Config
from gptladder.components import MLP, Attention, Block, Embed, LayerCache, LayerNorm, PosEmbed, Unembed, named_taps
from gptladder.weights import to_hooked_transformer

LAYERS = ("embed", "pos_embed", "layer_norm", "attention", "mlp", "block", "unembed")


class HookedTap(HookPoint):
    """A ``HookPoint`` with the property ``active`` of a `Tap`, by which our layers know whether it has hooks."""

    @property
    def active(self) -> bool:
        """Whether it has hooks."""
        return bool(self._forward_hooks)


class TheirCache(LayerCache):
    """One layer of TransformerLens's cache, with the interface that our attention needs."""

    def __init__(self, entry: Any) -> None:
        self.entry = entry
        self.length = entry.past_keys.shape[1]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[batch seq n_heads d_head] twice -> [batch n_heads key_pos d_head] twice."""
        keys, values = self.entry.append(k, v)
        return keys.transpose(1, 2), values.transpose(1, 2)


def translated(attention_mask: Tensor | None, past_kv_cache_entry: Any) -> dict[str, Any]:
    """Return our arguments for theirs."""
    return {
        "padding_mask": None if attention_mask is None else attention_mask.bool(),
        "cache": None if past_kv_cache_entry is None else TheirCache(past_kv_cache_entry),
    }


class TheirPosEmbed(PosEmbed):
    """`PosEmbed` with the padding mask as an argument, from which it computes the positions."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tokens: Tensor, past_kv_pos_offset: int = 0, attention_mask: Tensor | None = None
    ) -> Tensor:
        """[batch seq] -> [batch seq d_model]."""
        if attention_mask is None:
            return super().forward(tokens, offset=past_kv_pos_offset)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, past_kv_pos_offset:]
        return super().forward(tokens, positions=positions)


class TheirAttention(Attention):
    """`Attention` with the call of TransformerLens, which passes the same input three times."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, query_input: Tensor, key_input: Any, value_input: Any, past_kv_cache_entry: Any = None, **given: Any
    ) -> Tensor:
        """[batch seq d_model] -> the same."""
        return super().forward(query_input, **translated(given.get("attention_mask"), past_kv_cache_entry))


class TheirBlock(Block):
    """`Block` with the call of ``TransformerBlock``."""

    def forward(self, resid_pre: Tensor, past_kv_cache_entry: Any = None, **given: Any) -> Tensor:
        """[batch seq d_model] -> the same."""
        return super().forward(resid_pre, **translated(given.get("attention_mask"), past_kv_cache_entry))


def replace(hooked: Any, *layers: str) -> None:
    """Replace the layers of these names everywhere in a ``HookedTransformer`` by ours, with its weights.

    The model must have raw weights (``normalization_type`` LN). Our layers do not offer inputs split by head
    (``use_split_qkv_input``, ``use_attn_in``) and results split by head (``use_attn_result``).
    """
    if unknown := set(layers) - set(LAYERS):
        raise ValueError(f"there is no layer {sorted(unknown)}; there are {', '.join(LAYERS)}")
    cfg = hooked.cfg
    if cfg.normalization_type != "LN" or cfg.use_split_qkv_input or cfg.use_attn_in or cfg.use_attn_result:
        raise ValueError("the model must have raw weights, without inputs or results split by head")
    made: dict[str, Any] = {"d_model": cfg.d_model, "device": cfg.device, "dtype": cfg.dtype}
    mlp = {"d_mlp": cfg.d_mlp, "act_fn": cfg.act_fn}

    def put(parent: nn.Module, name: str, layer: nn.Module) -> None:
        layer.load_state_dict(getattr(parent, name).state_dict())
        for path, tap in named_taps(layer).items():
            if tap.offered:  # those that are formed on request have other places there
                layer.set_submodule(path, HookedTap())
        setattr(parent, name, layer)

    def heads(index: int) -> dict[str, Any]:
        return {"n_heads": cfg.n_heads, "d_head": cfg.d_head, "scale": 1 / hooked.blocks[index].attn.attn_scale}

    if "embed" in layers:
        put(hooked, "embed", Embed(d_vocab=cfg.d_vocab, **made))
    if "pos_embed" in layers:
        put(hooked, "pos_embed", TheirPosEmbed(n_ctx=cfg.n_ctx, **made))
    if "layer_norm" in layers:
        put(hooked, "ln_final", LayerNorm(layer_norm_eps=cfg.eps, **made))
    for index, block in enumerate(hooked.blocks):
        if "block" in layers:
            put(hooked.blocks, str(index), TheirBlock(layer_norm_eps=cfg.eps, **heads(index), **mlp, **made))
            continue
        if "layer_norm" in layers:
            for name in ("ln1", "ln2"):
                put(block, name, LayerNorm(layer_norm_eps=cfg.eps, **made))
        if "attention" in layers:
            put(block, "attn", TheirAttention(**heads(index), **made))
        if "mlp" in layers:
            put(block, "mlp", MLP(**mlp, **made))
    if "unembed" in layers:
        put(hooked, "unembed", Unembed(d_vocab=cfg.d_vocab, **made))
    hooked.eval()
    hooked.setup()  # it must collect its hook points again


@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a published model's name, or a folder; random weights without it")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    if arguments.model:
        model = GPT2.from_pretrained(arguments.model).double()
    else:
        model = GPT2(GPT2Config(d_model=48, n_layers=3, n_heads=4, d_vocab=100, n_ctx=64, init_range=0.2)).double()
    print(f"weights: {arguments.model or 'random, 3 layers'}; float64")
    tokens = torch.randint(model.config.d_vocab, (2, 20))
    theirs = to_hooked_transformer(model)
    expected, cached = theirs.run_with_cache(tokens)
    # With its cache, transformer-lens 3.9 counts the positions of generated tokens wrongly, also with its own layers.
    greedy = {
        "use_past_kv_cache": False,
        "do_sample": False,
        "max_new_tokens": 20,
        "stop_at_eos": False,
        "verbose": False,
    }
    continued = theirs.generate(tokens, **greedy)
    for layers in (*((layer,) for layer in LAYERS), LAYERS):
        hooked = to_hooked_transformer(model)
        replace(hooked, *layers)
        logits, cache = hooked.run_with_cache(tokens)
        off = (logits - expected).abs().max()
        # Masked scores are minus infinity in both; their difference is nan.
        off_cached = max((cache[name] - cached[name]).nan_to_num(0).abs().max() for name in cache)
        name = "all seven" if len(layers) > 1 else layers[0]
        same = torch.equal(hooked.generate(tokens, **greedy), continued)
        result = "the same" if same else "DIFFERENT"
        print(f"{name:>10}: logits off by {off:.1e}, {len(cache)} activations by {off_cached:.1e}; 20 tokens: {result}")


if __name__ == "__main__":
    main()
