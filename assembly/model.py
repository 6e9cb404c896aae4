"""GPT-2, wired from the layers. Nothing is computed here that a layer could compute."""

from os import PathLike
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..components.dropout import dropout
from ..components.embed import Embed
from ..components.kv_cache import KVCache
from ..components.layer_norm import LayerNorm
from ..components.pos_embed import PosEmbed
from ..components.shapes import shape_checked
from ..components.tap import Tap
from ..components.unembed import Unembed
from .blocks import Blocks
from .checkpointing import call_block
from .config import GPT2Config
from .hooked import HookedModel
from .loss import ReturnType, as_return_type
from .partial import partial_residual
from .text import Input, PaddingSide, as_batch, as_padding_mask

_SIZES = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx")


class _InWeights:
    """A method of 0.1.0 that is a function of `gptladder.weights` now."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(
            f"GPT2.{self.name} is a function now: from gptladder.weights import {self.name}", name=self.name
        )


class GPT2(HookedModel):
    """GPT-2 (Radford et al. 2019): from tokens to the logits of the token that follows each.

    ``GPT2(config)`` has new random weights; `from_pretrained` reads a model folder or fetches a published model.
    Parameters and activations have TransformerLens's names (``blocks.0.attn.hook_pattern``).

    Args:
        config: sizes and choices.
        fused: use PyTorch's fused kernels in attention and layer norms; see the attribute `fused`.

    Attributes:
        checkpoint_blocks: compute each block's activations again for its gradients instead of holding them, which takes
            a third more time and far less memory. Gradients are the same to the bit.

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
        if not isinstance(config, GPT2Config):
            raise TypeError(
                f"GPT2 is made from a GPT2Config, not from {config!r:.60}; GPT2.from_pretrained loads a model by name"
            )
        self.config = config
        self.d_vocab = config.d_vocab
        self.checkpoint_blocks = False
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        drawn = {"init_range": config.init_range, **made}
        self.hook_tokens = Tap(on_request=True)  # [batch seq]
        self.embed = Embed(d_vocab=config.d_vocab, d_model=config.d_model, **drawn)
        self.hook_embed = Tap()  # [batch seq d_model]
        self.pos_embed = PosEmbed(n_ctx=config.n_ctx, d_model=config.d_model, **drawn)
        self.hook_pos_embed = Tap()  # [batch seq d_model]
        self.blocks = Blocks.from_config(config, fused=fused, **made)
        self.ln_final = (
            LayerNorm(d_model=config.d_model, layer_norm_eps=config.layer_norm_eps, fused=fused, **made)
            if config.norm == "pre"
            else nn.Identity()
        )
        tied_to = self.embed if config.tie_word_embeddings else None
        self.unembed = Unembed(
            d_model=config.d_model, d_vocab=config.d_vocab, bias=config.unembed_bias, tied_to=tied_to, **drawn
        )
        for name, tap in self.hook_dict.items():
            tap.name = name

    def reset_parameters(self) -> None:
        """Draw all weights again, as for a new model."""
        for layer in (self.embed, self.pos_embed, self.blocks, self.ln_final, self.unembed):
            if not isinstance(layer, nn.Identity):
                layer.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        # A tied output projection follows the embedding when that is replaced.
        unembed = self.__dict__.get("_modules", {}).get("unembed")
        if name == "embed" and isinstance(unembed, Unembed) and unembed.tied:
            unembed.tie_to(value)
        super().__setattr__(name, value)

    def forward(
        self,
        input: Input | None = None,
        return_type: ReturnType = "logits",
        *,
        padding_mask: Bool[Tensor, "batch seq"] | None = None,
        positions: Int[Tensor, "batch seq"] | None = None,
        cache: KVCache | None = None,
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        tokens: Int[Tensor, "batch seq"] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        """Return the logits of the token that follows each position, or what ``return_type`` asks for.

        Args:
            input: tokens [batch seq] or [seq], at least one for each sequence; or a text or several, which the model's
                `tokenizer` reads; or, with ``start_at_layer``, the residual stream [batch seq d_model].
            return_type: ``logits`` [batch seq d_vocab]; ``loss``, the mean cross-entropy of predicting each token of
                the input from those before it; ``both``; or None, for hooks alone.
            padding_mask: True at tokens, False at padding. No position attends to padding, and positions are counted
                without it; the logits at padding itself are undefined. Texts of different lengths are padded.
            positions: position of each token (default: counted from the start of the sequence).
            cache: the tokens before these (`new_cache` returns an empty one); these are added to it. ``tokens`` and
                ``padding_mask`` are then of the new tokens alone.
            loss_per_token: return the loss of each token, [batch seq-1].
            prepend_bos, padding_side: for text, see `to_tokens`.
            start_at_layer: run from this block on.
            stop_at_layer: return the residual stream before this block; 0 is what the first block reads. Negative
                numbers count from the last block.
            tokens: ``input`` by its name in version 0.1.0; beside ``start_at_layer``, the tokens for the loss.
            attention_mask: ``padding_mask``, also in numbers 0 and 1.

        Raises:
            ValueError: no token; a token outside the vocabulary; more tokens than ``n_ctx``, or than the cache holds;
                a cache of another model's sizes; text without a tokenizer; options that contradict each other.
        """
        if attention_mask is not None:
            padding_mask = as_padding_mask(attention_mask, padding_mask)
        if start_at_layer is None:
            given = tokens if input is None else input
            tokens, padding_mask = as_batch(self, given, padding_mask, prepend_bos, padding_side)
            input = tokens
        if start_at_layer is None and stop_at_layer is None:
            assert tokens is not None
            residual = self.final_residual(tokens, padding_mask=padding_mask, positions=positions, cache=cache)
        else:
            residual = partial_residual(self, input, start_at_layer, stop_at_layer, padding_mask, positions, cache)
        if stop_at_layer is not None:
            return residual
        if return_type is None:
            return None
        return as_return_type(return_type, self.unembed(residual), tokens, padding_mask, per_token=loss_per_token)

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
        past, seq = 0 if cache is None else cache.length, tokens.shape[1]
        layer_caches = [None] * len(self.blocks) if cache is None else cache.for_layers(len(self.blocks))
        try:
            # From here on the mask covers the cached positions too.
            mask = padding_mask if cache is None else cache.extend_mask(padding_mask, seq=seq)
            residual = self.embedded(tokens, mask, positions, past)
            for block, layer_cache in zip(self.blocks, layer_caches, strict=True):
                residual = call_block(
                    block, residual, checkpointed=self.checkpoint_blocks, padding_mask=mask, cache=layer_cache
                )
            if cache is not None:
                cache.length = past + seq
            return self.ln_final(residual)
        except BaseException:
            if cache is not None:
                cache.rewind(past)
            raise

    def embedded(
        self,
        tokens: Int[Tensor, "batch seq"],
        padding_mask: Bool[Tensor, "batch key_pos"] | None = None,
        positions: Int[Tensor, "batch seq"] | None = None,
        past: int = 0,
    ) -> Float[Tensor, "batch seq d_model"]:
        """Return what the first block reads: the embeddings of tokens and of positions, counted from ``past`` on."""
        if tokens.numel() == 0:
            raise ValueError(f"tokens have the shape {list(tokens.shape)}: a model needs at least one token")
        if positions is None and padding_mask is not None:
            positions = (padding_mask.cumsum(dim=1)[:, -tokens.shape[1] :] - 1).clamp(min=0)
        embed = self.hook_embed(self.embed(self.hook_tokens(tokens)))
        pos_embed = self.hook_pos_embed(self.pos_embed(tokens, offset=past, positions=positions))
        return dropout(embed + pos_embed, self.config.embed_dropout, self)

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

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={getattr(self.config, name)}" for name in _SIZES)
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({sizes}: {self.num_parameters():,} parameters in {dtype} on {self.device})"

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
