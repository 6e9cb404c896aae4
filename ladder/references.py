"""The layers that ours are judged against. Nothing else in the package builds an object of theirs to compare with.

TransformerLens is the first reference for each layer. transformers is the second, wherever the sizes are such that it
can build the layer (``n_heads * d_head = d_model``).
"""

# What the two libraries export and how they are called is wider than their annotations say.
# pyright: reportPrivateImportUsage=false, reportArgumentType=false, reportCallIssue=false, reportReturnType=false

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformer_lens
import transformer_lens.components as lens
import transformers
from torch import Tensor, nn
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers.models.gpt2 import modeling_gpt2

from ..assembly.config import GPT2Config
from ..weights.formats.hooked_transformer import hooked_config_fields
from ..weights.formats.huggingface import config_from_hf, config_to_hf, state_from_hf
from ..weights.layout import to_ours
from .answers import Parameters, Reference, randomize


def _lens_config(config: GPT2Config, dtype: torch.dtype) -> transformer_lens.HookedTransformerConfig:
    return transformer_lens.HookedTransformerConfig(
        **hooked_config_fields(config), dtype=dtype, device="cpu", init_weights=False
    )


def _from_lens(
    make: Callable[[Any], nn.Module], call: Callable[[nn.Module, Tensor], Tensor] = Reference.call
) -> Reference:
    # Our layers load TransformerLens's names as they are.
    return Reference(
        "TransformerLens",
        build=lambda config, dtype: make(_lens_config(config, dtype)),
        call=call,
        adapt=lambda config: dataclasses.replace(config, tie_word_embeddings=False, unembed_bias=True),
    )


def _hf_config(config: GPT2Config) -> transformers.GPT2Config:
    # Eager attention: the path that transformers documents as the plain formula.
    return transformers.GPT2Config(**config_to_hf(config), attn_implementation="eager")


def _from_hf(
    make: Callable[[transformers.GPT2Config], nn.Module],
    ours: str,
    theirs: str,
    call: Callable[[nn.Module, Tensor], Tensor] = Reference.call,
) -> Reference:
    """A layer of transformers whose parameters are ``ours…`` in our model and ``theirs…`` in its own."""

    def parameters(config: GPT2Config, given: Parameters) -> Parameters:
        one = dataclasses.replace(config, n_layers=1)
        named = to_ours("hf", one, {theirs + name: tensor for name, tensor in given.items()}, part=ours)
        return {name.removeprefix(ours): tensor for name, tensor in named.items()}

    return Reference(
        "transformers",
        build=lambda config, dtype: make(_hf_config(config)).to(dtype).eval(),
        call=call,
        parameters=parameters,
        adapt=lambda config: dataclasses.replace(
            config, d_model=config.n_heads * config.d_head, tie_word_embeddings=False, unembed_bias=False
        ),
    )


def _hf_masked(module: nn.Module, x: Tensor) -> Tensor:
    # Called alone with eager attention and no mask, transformers' attention and block are not causal.
    seq = x.shape[1]
    mask = torch.full((1, 1, seq, seq), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
    output = module(x, attention_mask=mask)
    return output[0] if isinstance(output, tuple) else output


def _hf_positions(module: nn.Module, tokens: Tensor) -> Tensor:
    return module(torch.arange(tokens.shape[1])).expand(*tokens.shape, -1)


REFERENCES: dict[str, tuple[Reference, ...]] = {
    "embed": (
        _from_lens(lens.Embed),
        _from_hf(lambda c: nn.Embedding(c.vocab_size, c.n_embd), "embed.", "wte."),
    ),
    "pos-embed": (
        _from_lens(lens.PosEmbed),
        _from_hf(lambda c: nn.Embedding(c.n_positions, c.n_embd), "pos_embed.", "wpe.", _hf_positions),
    ),
    "layer-norm": (
        _from_lens(lens.LayerNorm),
        _from_hf(lambda c: nn.LayerNorm(c.n_embd, c.layer_norm_epsilon), "ln_final.", "ln_f."),
    ),
    "attention": (
        _from_lens(lambda cfg: lens.Attention(cfg, layer_id=0), lambda module, x: module(x, x, x)),
        _from_hf(lambda c: modeling_gpt2.GPT2Attention(c, layer_idx=0), "blocks.0.attn.", "h.0.attn.", _hf_masked),
    ),
    "mlp": (
        _from_lens(lens.MLP),
        _from_hf(lambda c: modeling_gpt2.GPT2MLP(c.n_inner or 4 * c.n_embd, c), "blocks.0.mlp.", "h.0.mlp."),
    ),
    "block": (
        _from_lens(lambda cfg: lens.TransformerBlock(cfg, 0)),
        _from_hf(lambda c: modeling_gpt2.GPT2Block(c, layer_idx=0), "blocks.0.", "h.0.", _hf_masked),
    ),
    "unembed": (
        _from_lens(lens.Unembed),
        _from_hf(lambda c: nn.Linear(c.n_embd, c.vocab_size, bias=False), "unembed.", "lm_head."),
    ),
    "model": (
        _from_lens(transformer_lens.HookedTransformer),
        Reference(
            "transformers",
            build=lambda config, dtype: transformers.GPT2LMHeadModel(_hf_config(config)).to(dtype).eval(),
            call=lambda module, tokens: module(tokens).logits,
            parameters=state_from_hf,
            adapt=lambda config: dataclasses.replace(
                config, d_model=config.n_heads * config.d_head, tie_word_embeddings=True, unembed_bias=False
            ),
        ),
    ),
}


# A whole model of another library: for tokens, its logits, and the residual stream before the first block and after
# each.
Whole = Callable[[Tensor], tuple[Tensor, list[Tensor]]]


def random_hf(config: GPT2Config, seed: int) -> transformers.GPT2LMHeadModel:
    """A transformers model of random numbers: matrices that keep the variance, gains and biases that matter."""
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config_to_hf(config))).eval()
    randomize(hf, torch.Generator().manual_seed(seed))
    with torch.no_grad():  # so that tied logits have a standard deviation near 1, as trained ones do
        hf.transformer.wte.weight.div_(config.d_model**0.5)
    return hf


def read_hf(folder: Path) -> transformers.GPT2LMHeadModel:
    """A folder as transformers reads it."""
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


def whole_hf(hf: transformers.GPT2LMHeadModel) -> Whole:
    """transformers' own forward pass."""

    def run(tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        # Its last hidden state has gone through the final layer norm; a hook on the last block has not.
        stream: list[Tensor] = []
        handles = [hf.transformer.h[0].register_forward_pre_hook(lambda _, args: stream.append(args[0]))]
        handles += [
            block.register_forward_hook(lambda _, args, out: stream.append(out[0] if isinstance(out, tuple) else out))
            for block in hf.transformer.h
        ]
        try:
            return hf(tokens).logits, stream
        finally:
            for handle in handles:
                handle.remove()

    return run


def whole_lens(hf: transformers.GPT2LMHeadModel) -> Whole:
    """HookedTransformer, with the weights as TransformerLens itself converts them from transformers."""
    hooked = _lens_from_hf(hf)

    def run(tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        names = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(hooked.cfg.n_layers))]
        logits, cache = hooked.run_with_cache(tokens, names_filter=names, return_cache_object=False)
        return logits, [cache[name] for name in names]

    return run


def processed_lens(hf: transformers.GPT2LMHeadModel) -> transformer_lens.HookedTransformer:
    """A float64 HookedTransformer whose weights were folded and centred as ``from_pretrained`` does by default."""
    raw = _lens_from_hf(hf)
    cfg = copy.deepcopy(raw.cfg)
    cfg.normalization_type = "LNPre"
    hooked = transformer_lens.HookedTransformer(cfg)
    hooked.load_and_process_state_dict({name: tensor.clone() for name, tensor in raw.state_dict().items()})
    return hooked.to(torch.float64, print_details=False).eval()


def _lens_from_hf(hf: transformers.GPT2LMHeadModel) -> transformer_lens.HookedTransformer:
    hooked = transformer_lens.HookedTransformer(_lens_config(config_from_hf(hf.config.to_dict()), hf.dtype))
    converted = convert_gpt2_weights(hf, hooked.cfg)
    missing, unexpected = hooked.load_state_dict(converted, strict=False)
    # Its conversion leaves out what the model fills in: b_U of zeros and the constants of the causal mask.
    wrong = [*unexpected, *(name for name in missing if not name.endswith(("b_U", "attn.mask", "attn.IGNORE")))]
    if wrong:
        raise RuntimeError(f"TransformerLens's own conversion does not fit its own model: {wrong}")
    with torch.no_grad():
        hooked.unembed.b_U.zero_()
    return hooked.eval()
