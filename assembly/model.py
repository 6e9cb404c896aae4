"""GPT-2, wired from the layers. Nothing is computed here that a layer could compute."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..components import taps
from ..components.attention import Attention
from ..components.block import Block
from ..components.dropout import dropout
from ..components.embed import Embed
from ..components.kv_cache import KVCache
from ..components.layer_norm import LayerNorm
from ..components.pos_embed import PosEmbed
from ..components.shapes import shape_checked
from ..components.taps import ActivationCache, Hook, HookFunction, Names, Tap
from ..components.unembed import Unembed
from .blocks import Blocks
from .config import GPT2Config
from .init import scale_residual_projections


class _InWeights:
    """A method of 0.1.0 that is a function of `gptladder.weights` now."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(
            f"GPT2.{self.name} is a function now: from gptladder.weights import {self.name}", name=self.name
        )


class GPT2(nn.Module):
    """GPT-2 (Radford et al. 2019): from tokens to the logits of the token that follows each.

    ``GPT2(config)`` has new random weights; `from_pretrained` reads a model folder or fetches a published model.
    Parameters and activations have TransformerLens's names (``blocks.0.attn.hook_pattern``).

    Args:
        config: sizes and choices.
        fused: use PyTorch's fused kernels in attention and layer norms; see the attribute `fused`.

    Example:
        >>> model = GPT2(GPT2Config(d_model=16, n_layers=2, n_heads=4, d_vocab=50, n_ctx=8))
        >>> tokens = torch.tensor([[3, 1, 4, 1, 5]])
        >>> model(tokens).shape  # batch seq d_vocab
        torch.Size([1, 5, 50])
        >>> logits, cache = model.run_with_cache(tokens)
        >>> cache["pattern", 0].shape  # batch n_heads query_pos key_pos
        torch.Size([1, 4, 5, 5])
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
        self.blocks = Blocks(blocks)
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

    def reset_parameters(self) -> None:
        """Draw all weights again, as for a new model."""
        blocks: list[Any] = list(self.blocks)
        layers: list[Any] = [self.embed, self.pos_embed, *blocks, self.ln_final, self.unembed]
        for layer in layers:
            if not isinstance(layer, nn.Identity):
                layer.reset_parameters()
        scale_residual_projections(blocks)

    @property
    def fused(self) -> bool:
        """Whether attention and layer norms use PyTorch's fused kernels unless a hook needs what these never form.

        Set it to False to compute every call step by step: with hooks, in `run_with_cache` and without either, the
        logits are then the same to the bit, and second derivatives are available. Fused kernels are faster and differ
        from that by rounding (in bfloat16, logits were seen to differ by 0.05).
        """
        return all(layer.fused for layer in self._layers_with_kernels())

    @fused.setter
    def fused(self, value: bool) -> None:
        for layer in self._layers_with_kernels():
            layer.fused = value

    def _layers_with_kernels(self) -> list[Attention | LayerNorm]:
        return [layer for layer in self.modules() if isinstance(layer, Attention | LayerNorm)]

    def __setattr__(self, name: str, value: Any) -> None:
        # A tied output projection follows the embedding when that is replaced.
        unembed = self.__dict__.get("_modules", {}).get("unembed")
        if name == "embed" and isinstance(unembed, Unembed) and unembed.tied:
            unembed.tie_to(value)
        super().__setattr__(name, value)

    @shape_checked
    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        padding_mask: Bool[Tensor, "batch seq"] | None = None,
        positions: Int[Tensor, "batch seq"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch seq d_vocab={self.d_vocab}"]:
        """Return the logits of the token that follows each position.

        Args:
            tokens: at least one for each sequence.
            padding_mask: True at tokens, False at padding. No position attends to padding, and positions are counted
                without it; the logits at padding itself are undefined.
            positions: position of each token (default: counted from the start of the sequence).
            cache: the tokens before these (`new_cache` returns an empty one); these are added to it. ``tokens`` and
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
        """Return the normalised residual stream that `unembed` projects; arguments and errors as for `forward`.

        If the vocabulary is large, most of the time goes into projecting, so project only the positions you need.

        Example:
            >>> model = GPT2(GPT2Config(d_model=16, n_layers=2, n_heads=4, d_vocab=50, n_ctx=8))
            >>> residual = model.final_residual(torch.tensor([[3, 1, 4, 1, 5]]))
            >>> model.unembed(residual[:, -1:]).shape  # logits after the last token alone
            torch.Size([1, 1, 50])
        """
        seq = tokens.shape[1]
        if tokens.numel() == 0:
            raise ValueError(f"tokens have the shape {list(tokens.shape)}: a model needs at least one token")
        past = 0 if cache is None else cache.length
        try:
            # From here on the mask covers the cached positions too.
            mask = padding_mask if cache is None else cache.extend_mask(padding_mask, seq=seq)
            if positions is None and mask is not None:
                positions = (mask.cumsum(dim=1)[:, -seq:] - 1).clamp(min=0)
            embed = self.hook_embed(self.embed(tokens))
            pos_embed = self.hook_pos_embed(self.pos_embed(tokens, offset=past, positions=positions))
            residual = dropout(embed + pos_embed, self.config.embed_dropout, self)
            for layer, block in enumerate(self.blocks):
                residual = block(residual, padding_mask=mask, cache=None if cache is None else cache.layers[layer])
            if cache is not None:
                cache.length = past + seq
            return self.ln_final(residual)
        except BaseException:
            if cache is not None:
                cache.rewind(past)
            raise

    def new_cache(self, batch: int, *, capacity: int | None = None, growing: bool = False) -> KVCache:
        """Return an empty cache for ``batch`` sequences.

        Args:
            capacity: positions that fit, padding included (default: ``n_ctx``).
            growing: start with ``capacity`` and take more memory as needed.

        Example: see `KVCache`.
        """
        weight = self.pos_embed.W_pos
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
        """Return how many numbers training changes; a tied output projection counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def run_with_cache(self, tokens: Tensor, **kwargs: Any) -> tuple[Tensor, ActivationCache]:
        """Return the logits, and the activations by name. See `gptladder.components.taps.run_with_cache`.

        The logits can differ from the plain call's by rounding; with `fused` set to False they never do.
        """
        return taps.run_with_cache(self, tokens, **kwargs)

    def run_with_hooks(
        self, tokens: Tensor, *, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = (), **kwargs: Any
    ) -> Tensor:
        """Return the logits, with hooks on activations. See `gptladder.components.taps.run_with_hooks`."""
        return taps.run_with_hooks(self, tokens, fwd_hooks=fwd_hooks, bwd_hooks=bwd_hooks, **kwargs)

    def hooks(self, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = ()) -> AbstractContextManager[None]:
        """Put hooks on activations and gradients, for a block of code. See `gptladder.components.taps.hooks`."""
        return taps.hooks(self, fwd_hooks, bwd_hooks)

    def add_hook(self, name: Names, hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd") -> None:
        """Put a hook on activations until `reset_hooks`. See `gptladder.components.taps.add_hook`."""
        taps.add_hook(self, name, hook, dir)

    def reset_hooks(self) -> None:
        """Remove what `add_hook` added."""
        taps.reset_hooks(self)

    # The only imports from above assembly. They happen in the call, so that importing assembly does not import weights.

    @classmethod
    def from_pretrained(cls, name_or_folder: str | PathLike[str], **kwargs: Any) -> "GPT2":
        """Return a model from a folder, or by its name on the hub. See `gptladder.weights.from_pretrained`."""
        from ..weights import from_pretrained

        return from_pretrained(name_or_folder, **kwargs)

    from_tensorflow = _InWeights()
    from_nanogpt = _InWeights()
    from_hf = _InWeights()
    from_hooked_transformer = _InWeights()

    def save_pretrained(self, folder: str | PathLike[str], **kwargs: Any) -> None:
        """Write a folder that transformers can read. See `gptladder.weights.save_pretrained`."""
        from ..weights import save_pretrained

        save_pretrained(self, folder, **kwargs)
