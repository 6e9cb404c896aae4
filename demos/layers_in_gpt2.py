"""Replace layers of transformers' GPT-2 by ours: one at a time, all at once, and generate with its cache.

    python demos/layers_in_gpt2.py [--model gpt2]

Four layers fit without changes. transformers calls the other three differently, so a small subclass of each translates
the call: the position embedding gets positions instead of tokens; attention gets a mask with four axes and the cache of
transformers, and must return a pair.
"""

import argparse
from typing import Any

import torch
from torch import Tensor, nn

from gptladder import GPT2, GPT2Config
from gptladder.components import Attention, Block, LayerCache, PosEmbed, Unembed
from gptladder.weights import from_hf, to_hf

LAYERS = ("embed", "pos_embed", "layer_norm", "attention", "mlp", "block", "unembed")


class PositionsPosEmbed(PosEmbed):
    """`PosEmbed` with positions as its argument, instead of tokens."""

    def forward(self, positions: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[batch seq] -> [batch seq d_model]."""
        return super().forward(positions, positions=positions)


class TheirCache(LayerCache):
    """One layer of transformers' ``DynamicCache``, with the interface that our attention needs."""

    def __init__(self, cache: Any, layer: int) -> None:
        self.cache, self.layer = cache, layer
        self.length = cache.get_seq_length(layer)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[batch seq n_heads d_head] twice -> [batch n_heads key_pos d_head] twice."""
        keys, values = self.cache.update(k.transpose(1, 2), v.transpose(1, 2), self.layer)
        if keys.shape[2] != self.length + k.shape[1]:
            raise ValueError("the cache is longer than its last position (a static cache?): use a dynamic cache")
        return keys, values


def translated(attention_mask: Tensor | None, past_key_values: Any, layer: int) -> dict[str, Any]:
    """Return our arguments for theirs.

    Their mask [batch 1 query_pos key_pos] is True (or 0) at keys that a query may attend to. It includes causality. Our
    mask covers only padding. It is the mask of the last query, which may attend to all keys except padding.
    """
    last = None if attention_mask is None else attention_mask[:, 0, -1]
    return {
        "padding_mask": last if last is None or last.dtype == torch.bool else last == 0,
        "cache": None if past_key_values is None else TheirCache(past_key_values, layer),
    }


class TheirAttention(Attention):
    """`Attention` with the call of ``GPT2Attention``."""

    layer: int

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_states: Tensor, past_key_values: Any = None, attention_mask: Any = None, **_: Any
    ) -> Any:
        """[batch seq d_model] -> the same, and None for the attention pattern, which ``hook_pattern`` provides."""
        return super().forward(hidden_states, **translated(attention_mask, past_key_values, self.layer)), None


class TheirBlock(Block):
    """`Block` with the call of ``GPT2Block``."""

    layer: int

    def forward(
        self, hidden_states: Tensor, past_key_values: Any = None, attention_mask: Any = None, *_: Any, **__: Any
    ) -> Tensor:
        """[batch seq d_model] -> the same."""
        return super().forward(hidden_states, **translated(attention_mask, past_key_values, self.layer))


def replace(hf: Any, *layers: str) -> None:
    """Replace the layers of these names everywhere in a ``GPT2LMHeadModel`` by ours, with its weights.

    The model must be in ``eval()`` mode, because our layers do not have the dropout inside its attention and MLP.
    """
    if unknown := set(layers) - set(LAYERS):
        raise ValueError(f"there is no layer {sorted(unknown)}; there are {', '.join(LAYERS)}")
    ours = from_hf(hf)
    config, stack = ours.config, hf.transformer
    made: dict[str, Any] = {"device": hf.device, "dtype": hf.dtype}
    if "embed" in layers:
        stack.wte = ours.embed
    if "pos_embed" in layers:
        stack.wpe = _with_weights_of(
            ours.pos_embed, PositionsPosEmbed(n_ctx=config.n_ctx, d_model=config.d_model, **made)
        )
    if "layer_norm" in layers:
        stack.ln_f = ours.ln_final
    for index, block in enumerate(ours.blocks):
        sizes = {"d_model": config.d_model, "n_heads": config.n_heads, "scale": config.attn_scale(index), **made}
        if "layer_norm" in layers:
            stack.h[index].ln_1, stack.h[index].ln_2 = block.ln1, block.ln2
        if "attention" in layers:
            stack.h[index].attn = _with_weights_of(block.attn, TheirAttention(**sizes))
            stack.h[index].attn.layer = index
        if "mlp" in layers:
            stack.h[index].mlp = block.mlp
        if "block" in layers:
            rest = {"d_mlp": config.d_mlp, "act_fn": config.act_fn, "layer_norm_eps": config.layer_norm_eps}
            stack.h[index] = _with_weights_of(block, TheirBlock(**sizes, **rest))
            stack.h[index].layer = index
    if "unembed" in layers:
        # Tie it to our embedding if that is in the model too; otherwise copy the matrix.
        tied_to = ours.embed if config.tie_word_embeddings and "embed" in layers else None
        hf.lm_head = Unembed(d_model=config.d_model, d_vocab=config.d_vocab, bias=False, tied_to=tied_to, **made)
        if tied_to is None:
            hf.lm_head.load_state_dict({"W_U": ours.unembed.W_U})
    hf.eval()


def _with_weights_of(layer: nn.Module, translating: nn.Module) -> nn.Module:
    translating.load_state_dict(layer.state_dict())
    return translating


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
    theirs = to_hf(model)
    expected = theirs(tokens).logits
    greedy = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 0, "eos_token_id": None}
    continued = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), **greedy)
    for layers in (*((layer,) for layer in LAYERS), LAYERS):
        hf = to_hf(model)
        replace(hf, *layers)
        off = (hf(tokens).logits - expected).abs().max()
        same = torch.equal(hf.generate(tokens, attention_mask=torch.ones_like(tokens), **greedy), continued)
        name = "all seven" if len(layers) > 1 else layers[0]
        result = "the same" if same else "DIFFERENT"
        print(f"{name:>10}: logits off by {off:.1e}; 20 tokens generated with its cache: {result}")


if __name__ == "__main__":
    main()
