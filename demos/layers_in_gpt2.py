"""Our layers in a transformers GPT-2, in place of theirs: one at a time, all at once, and generating with its cache.

    python demos/layers_in_gpt2.py [--model gpt2]

Four layers fit as they are. The other three are called in another way there, and a subclass of a few lines translates:
transformers asks for the embeddings of given positions, hands attention a mask of four axes and a cache of its own, and
expects a pair from it.
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
    """`PosEmbed` called with positions instead of tokens."""

    def forward(self, positions: Tensor) -> Tensor:
        """[batch seq] -> [batch seq d_model]."""
        return super().forward(positions, positions=positions)


class TheirCache(LayerCache):
    """One layer of transformers' ``DynamicCache``, as our attention uses a cache."""

    def __init__(self, cache: Any, layer: int) -> None:
        self.cache, self.layer = cache, layer
        self.length = cache.get_seq_length(layer)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[batch seq n_heads d_head] twice -> [batch n_heads key_pos d_head] twice."""
        keys, values = self.cache.update(k.transpose(1, 2), v.transpose(1, 2), self.layer)
        if keys.shape[2] != self.length + k.shape[1]:
            raise ValueError("the cache has room beyond its last position (a static one?): use a dynamic cache")
        return keys, values


def translated(attention_mask: Tensor | None, past_key_values: Any, layer: int) -> dict[str, Any]:
    """Our arguments from theirs.

    Their mask [batch 1 query_pos key_pos] (True or 0 where one may look) is causal too. Ours is of padding alone, which
    is what the last query sees.
    """
    last = None if attention_mask is None else attention_mask[:, 0, -1]
    return {
        "padding_mask": last if last is None or last.dtype == torch.bool else last == 0,
        "cache": None if past_key_values is None else TheirCache(past_key_values, layer),
    }


class TheirAttention(Attention):
    """`Attention` called as ``GPT2Attention``."""

    layer: int

    def forward(self, hidden_states: Tensor, past_key_values: Any = None, attention_mask: Any = None, **_: Any) -> Any:
        """[batch seq d_model] -> the same, and no attention pattern: that is ``hook_pattern``'s."""
        return super().forward(hidden_states, **translated(attention_mask, past_key_values, self.layer)), None


class TheirBlock(Block):
    """`Block` called as ``GPT2Block``."""

    layer: int

    def forward(
        self, hidden_states: Tensor, past_key_values: Any = None, attention_mask: Any = None, *_: Any, **__: Any
    ) -> Tensor:
        """[batch seq d_model] -> the same."""
        return super().forward(hidden_states, **translated(attention_mask, past_key_values, self.layer))


def replace(hf: Any, *layers: str) -> None:
    """Put our layers of these names in place of a ``GPT2LMHeadModel``'s, everywhere, with its weights.

    For a model in ``eval()`` mode: the dropout that theirs holds inside attention and MLP is not carried over.
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
        # Tied to our embedding where that is in the model too; else with a copy of the matrix.
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
        result = "the same" if same else "OTHERS"
        print(f"{name:>10}: logits off by {off:.1e}; 20 tokens generated with its cache: {result}")


if __name__ == "__main__":
    main()
