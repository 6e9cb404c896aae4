"""The layers wired into GPT-2. Nothing is computed here that a layer could compute."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..components import taps
from ..components.block import Block
from ..components.embed import Embed
from ..components.kv_cache import KVCache
from ..components.layer_norm import LayerNorm
from ..components.pos_embed import PosEmbed
from ..components.shapes import shape_checked
from ..components.taps import ActivationCache, Hook, Tap
from ..components.unembed import Unembed
from .config import GPT2Config
from .init import scale_residual_projections


class GPT2(nn.Module):
    """GPT-2 (Radford et al. 2019): from tokens to the logits of the token that follows each.

    ``GPT2(config)`` has fresh weights; `from_pretrained` reads a model folder or fetches a published model. Parameters
    and activations bear TransformerLens's names (``blocks.0.attn.hook_pattern``).

    Args:
        config: sizes and choices.
        fused: use PyTorch's kernels in attention and layer norms; False computes everything as written.
    """

    def __init__(
        self,
        config: GPT2Config,
        *,
        fused: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.d_vocab = config.d_vocab
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        drawn = {"init_range": config.init_range, **made}
        self.embed = Embed(d_vocab=config.d_vocab, d_model=config.d_model, **drawn)
        self.hook_embed = Tap()  # [batch seq d_model]
        self.pos_embed = PosEmbed(n_ctx=config.n_ctx, d_model=config.d_model, **drawn)
        self.hook_pos_embed = Tap()  # [batch seq d_model]
        blocks = [
            Block(
                d_model=config.d_model,
                n_heads=config.n_heads,
                d_head=config.d_head,
                d_mlp=config.d_mlp,
                act_fn=config.act_fn,
                layer_norm_eps=config.layer_norm_eps,
                norm=config.norm,
                scale=config.attn_scale(layer),
                attn_dropout=config.attn_dropout,
                resid_dropout=config.resid_dropout,
                fused=fused,
                **drawn,
            )
            for layer in range(config.n_layers)
        ]
        scale_residual_projections(blocks)
        self.blocks = nn.ModuleList(blocks)
        self.ln_final = (
            LayerNorm(d_model=config.d_model, layer_norm_eps=config.layer_norm_eps, fused=fused, **made)
            if config.norm == "pre"
            else nn.Identity()
        )
        self.unembed = Unembed(
            d_model=config.d_model,
            d_vocab=config.d_vocab,
            bias=config.unembed_bias,
            tied_to=self.embed if config.tie_word_embeddings else None,
            **drawn,
        )

    @shape_checked
    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        padding_mask: Bool[Tensor, "batch seq"] | None = None,
        positions: Int[Tensor, "batch seq"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch seq d_vocab={self.d_vocab}"]:
        """The logits of the token that follows each position.

        Args:
            tokens: at least one for each sequence.
            padding_mask: True at tokens, False at padding. Nobody attends to padding, and positions are counted
                without it; the logits at padding itself mean nothing.
            positions: the position of each token, instead of counting them.
            cache: the tokens before these (`new_cache` makes an empty one); these are added to it. ``tokens`` and
                ``padding_mask`` are then of the new tokens alone.

        Raises:
            ValueError: no token; a token outside the vocabulary; more tokens than ``n_ctx``, or than the cache holds.
        """
        return self.unembed(self.final_residual(tokens, padding_mask=padding_mask, positions=positions, cache=cache))

    @shape_checked
    def final_residual(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        padding_mask: Bool[Tensor, "batch seq"] | None = None,
        positions: Int[Tensor, "batch seq"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch seq d_model={self.config.d_model}"]:
        """The normalised residual stream that `unembed` projects; arguments and errors as for calling the model.

        Projecting only the positions that are needed saves the greater part of the time where the vocabulary is large.
        """
        seq = tokens.shape[1]
        if tokens.numel() == 0:
            raise ValueError(f"tokens have the shape {list(tokens.shape)}: a model needs at least one token to read")
        past = 0 if cache is None else cache.length
        try:
            # From here on the mask covers the cached positions too.
            mask = padding_mask if cache is None else cache.extend_mask(padding_mask, seq=seq)
            if positions is None and mask is not None:
                positions = (mask.cumsum(dim=1)[:, -seq:] - 1).clamp(min=0)
            embed = self.hook_embed(self.embed(tokens))
            pos_embed = self.hook_pos_embed(self.pos_embed(tokens, offset=past, positions=positions))
            residual = F.dropout(embed + pos_embed, self.config.embed_dropout, self.training)
            for layer, block in enumerate(self.blocks):
                residual = block(residual, padding_mask=mask, cache=None if cache is None else cache.layers[layer])
            return self.ln_final(residual)
        except BaseException:
            if cache is not None:
                cache.rewind(past)
            raise

    def new_cache(self, batch: int, *, capacity: int | None = None, growing: bool = False) -> KVCache:
        """An empty cache for ``batch`` sequences.

        Args:
            capacity: positions that fit, padding included; ``n_ctx`` where it is not given.
            growing: start with ``capacity`` and take more memory as needed.
        """
        weight = self.embed.W_E
        return KVCache(
            n_layers=self.config.n_layers,
            batch=batch,
            n_heads=self.config.n_heads,
            d_head=self.config.d_head,
            capacity=self.config.n_ctx if capacity is None else capacity,
            growing=growing,
            device=weight.device,
            dtype=weight.dtype,
        )

    def num_parameters(self) -> int:
        """Numbers that training changes; a tied output projection counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def run_with_cache(self, tokens: Tensor, **kwargs: Any) -> tuple[Tensor, ActivationCache]:
        """Logits, and the activations by name. See `gptladder.components.taps.run_with_cache`."""
        return taps.run_with_cache(self, tokens, **kwargs)

    def run_with_hooks(self, tokens: Tensor, *, fwd_hooks: Sequence[Hook] = (), **kwargs: Any) -> Tensor:
        """Logits, with hooks on activations. See `gptladder.components.taps.run_with_hooks`."""
        return taps.run_with_hooks(self, tokens, fwd_hooks=fwd_hooks, **kwargs)

    def hooks(self, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = ()) -> AbstractContextManager[None]:
        """Hooks on activations and gradients, for a block of code. See `gptladder.components.taps.hooks`."""
        return taps.hooks(self, fwd_hooks, bwd_hooks)

    # The one door upwards: a model can be asked for its files. Imported when used, so that assembly needs no weights.

    @classmethod
    def from_pretrained(cls, name_or_folder: str | PathLike[str], **kwargs: Any) -> "GPT2":
        """A model from a folder, or from the Hugging Face hub by name. See `gptladder.weights.from_pretrained`."""
        from ..weights import from_pretrained

        return from_pretrained(name_or_folder, **kwargs)

    @classmethod
    def from_tensorflow(cls, folder: str | PathLike[str], **kwargs: Any) -> "GPT2":
        """A model from a folder as OpenAI published it. See `gptladder.weights.from_tensorflow`."""
        from ..weights import from_tensorflow

        return from_tensorflow(folder, **kwargs)

    @classmethod
    def from_nanogpt(cls, path: str | PathLike[str], **kwargs: Any) -> "GPT2":
        """A model from a nanoGPT checkpoint. See `gptladder.weights.from_nanogpt`."""
        from ..weights import from_nanogpt

        return from_nanogpt(path, **kwargs)

    @classmethod
    def from_hf(cls, model: Any, **kwargs: Any) -> "GPT2":
        """A model with the weights of a ``transformers.GPT2LMHeadModel``. See `gptladder.weights.from_hf`."""
        from ..weights import from_hf

        return from_hf(model, **kwargs)

    @classmethod
    def from_hooked_transformer(cls, model: Any, **kwargs: Any) -> "GPT2":
        """A model with the weights of a ``HookedTransformer``. See `gptladder.weights.from_hooked_transformer`."""
        from ..weights import from_hooked_transformer

        return from_hooked_transformer(model, **kwargs)

    def save_pretrained(self, folder: str | PathLike[str], **kwargs: Any) -> None:
        """Write a folder that transformers can read. See `gptladder.weights.save_pretrained`."""
        from ..weights import save_pretrained

        save_pretrained(self, folder, **kwargs)
