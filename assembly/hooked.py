"""Hooks, caches, text and weights by TransformerLens's names: what researchers' code calls on a `GPT2`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..components import Attention, Embed, LayerNorm, PosEmbed, Unembed, caching, taps
from ..components.tap import Direction
from ..components.taps import Hook, HookFunction, Names, Tap
from ..tokenizer import Tokenizer, TokenizerSource, load_tokenizer
from . import text
from .blocks import Blocks
from .config import GPT2Config
from .lens_config import LensConfig
from .stacked import accumulated_bias, stacked


class HookedModel(nn.Module):
    """What `GPT2` offers beside its call, mostly under ``transformer_lens.HookedTransformer``'s names.

    Attributes:
        default_prepend_bos: text gets the token that begins every text in front of it; see `to_tokens`.
        tokenizer_source: the tokenizer, or where it is read from when it is first needed; see `tokenizer`.
    """

    config: GPT2Config
    embed: Embed
    pos_embed: PosEmbed
    unembed: Unembed
    blocks: Blocks

    def __init__(self) -> None:
        super().__init__()
        self.default_prepend_bos = True
        self.tokenizer_source: TokenizerSource | None = None

    # Hooks and caches.

    @property
    def hook_dict(self) -> dict[str, Tap]:
        """All activations by name, each as the module that it passes through."""
        return taps.named_taps(self)

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

    def run_with_cache(self, *args: Any, incl_bwd: Any = False, **kwargs: Any) -> tuple[Any, Any]:
        """Call the model and return its result, and the activations by name. See `components.caching.run_with_cache`.

        The logits can differ from the plain call's by rounding; with `fused` set to False they never do.

        Args:
            args, kwargs: as for the model's call, and for `components.caching.run_with_cache`.
            incl_bwd: keep the gradients of the loss too, as ``NAME_grad``, whether the result is ``loss``, ``logits``
                or ``both``; or the gradients of what a function makes of the result.

        Example:
            >>> import torch
            >>> from gptladder import GPT2, GPT2Config
            >>> model = GPT2(GPT2Config(d_model=16, n_layers=2, n_heads=4, d_vocab=50, n_ctx=8))
            >>> logits, cache = model.run_with_cache(torch.tensor([[3, 1, 4]]), incl_bwd=True)
            >>> cache["blocks.0.hook_resid_pre_grad"].shape
            torch.Size([1, 3, 16])
        """
        return_type = kwargs.get("return_type", args[1] if len(args) > 1 else "logits")
        if incl_bwd is not True or return_type not in ("logits", "both") or kwargs.get("stop_at_layer") is not None:
            return caching.run_with_cache(self, *args, incl_bwd=incl_bwd, **kwargs)
        both, cache = caching.run_with_cache(
            self, *args[:1], **{**kwargs, "return_type": "both", "incl_bwd": lambda result: result.loss}
        )
        return (both if return_type == "both" else both.logits), cache

    def run_with_hooks(
        self, *args: Any, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = (), **kwargs: Any
    ) -> Any:
        """Call the model with hooks on activations, and return its result. See `components.taps.run_with_hooks`."""
        return taps.run_with_hooks(self, *args, fwd_hooks=fwd_hooks, bwd_hooks=bwd_hooks, **kwargs)

    def hooks(
        self,
        fwd_hooks: Sequence[Hook] = (),
        bwd_hooks: Sequence[Hook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> AbstractContextManager[Any]:
        """Put hooks on activations and gradients, for a block of code. See `components.taps.hooks`."""
        return taps.hooks(self, fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts)

    def add_hook(
        self,
        name: Names,
        hook: HookFunction,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        *,
        prepend: bool = False,
    ) -> None:
        """Put a hook on activations until `reset_hooks`. See `components.taps.add_hook`."""
        taps.add_hook(self, name, hook, dir, prepend=prepend, is_permanent=is_permanent)

    def add_perma_hook(self, name: Names, hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd") -> None:
        """Put a hook on activations that stays until hooks are removed with ``including_permanent=True``."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def reset_hooks(
        self, clear_contexts: bool = True, direction: Direction = "both", including_permanent: bool = False
    ) -> None:
        """Remove hooks, and empty each ``hook.ctx``. See `components.taps.reset_hooks`."""
        taps.reset_hooks(self, clear_contexts, direction, including_permanent)

    def remove_all_hook_fns(self, direction: Direction = "both", including_permanent: bool = False) -> None:
        """Remove hooks as `reset_hooks` does, and leave each ``hook.ctx`` as it is."""
        self.reset_hooks(False, direction, including_permanent)

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Let caches and predicates on names find ``hook_result``, what each head adds to the stream, or no longer.

        A hook that names ``blocks.0.attn.hook_result`` exactly gets it in either case.
        """
        taps.offer(self, "hook_result", use_attn_result)

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Do the same for each head's input, ``hook_attn_in``."""
        taps.offer(self, "hook_attn_in", use_attn_in)

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Do the same for the inputs of each head's queries, keys and values: ``hook_q_input`` and so on."""
        for letter in "qkv":
            taps.offer(self, f"hook_{letter}_input", use_split_qkv_input)

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Do the same for the MLP's input before the layer norm, ``hook_mlp_in``."""
        taps.offer(self, "hook_mlp_in", use_hook_mlp_in)

    # Text, and the weights by name.

    def input_to_embed(
        self, input: Any, prepend_bos: bool | None = None, padding_side: Any = None, attention_mask: Any = None
    ) -> tuple[Tensor, Tensor, None, Tensor | None]:
        """Return what block 0 reads, the tokens, None, and the padding mask: what TransformerLens's method returns.

        ``model(residual, start_at_layer=0)`` goes on from the first.
        """
        mask = None if attention_mask is None else text.as_padding_mask(attention_mask, None)
        tokens, mask = text.as_batch(self, input, mask, prepend_bos, padding_side)
        return self(tokens, padding_mask=mask, stop_at_layer=0), tokens, None, mask

    to_tokens = text.to_tokens
    to_string = text.to_string
    to_str_tokens = text.to_str_tokens
    to_single_token = text.to_single_token
    to_single_str_token = text.to_single_str_token
    get_token_position = text.get_token_position
    tokens_to_residual_directions = text.tokens_to_residual_directions

    W_Q, W_K, W_V, W_O = (stacked(f"attn.{name}") for name in ("W_Q", "W_K", "W_V", "W_O"))
    b_Q, b_K, b_V, b_O = (stacked(f"attn.{name}") for name in ("b_Q", "b_K", "b_V", "b_O"))
    W_in, b_in, W_out, b_out = (stacked(f"mlp.{name}") for name in ("W_in", "b_in", "W_out", "b_out"))
    accumulated_bias = accumulated_bias

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """The token embedding's table."""
        return self.embed.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """The position embedding's table."""
        return self.pos_embed.W_pos

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The output projection."""
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        """The bias of the output projection; zeros if it has none."""
        b_U = self.unembed.b_U
        return self.W_U.new_zeros(self.config.d_vocab) if b_U is None else b_U

    @property
    def cfg(self) -> LensConfig:
        """The configuration under TransformerLens's names, for its tools; our own is `config`."""
        return LensConfig(self)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that reads and writes text for the model, or None. `from_pretrained` finds it with the model.

        Set it to one of ours, to one of transformers or tokenizers, or to a folder that holds one. `save_pretrained`
        writes it beside the weights.
        """
        if not isinstance(self.tokenizer_source, Tokenizer | None):
            self.tokenizer_source = load_tokenizer(self.tokenizer_source)
        return self.tokenizer_source

    @tokenizer.setter
    def tokenizer(self, source: TokenizerSource | None) -> None:
        self.tokenizer_source = None if source is None else load_tokenizer(source)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are held as."""
        return self.embed.W_E.dtype
