"""Names of activations: from short ones to full ones, as TransformerLens builds them."""

import re

_ALIASES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_mid": "mid",
    "mlp_post": "post",
}
_LAYER_TYPES = {"a": "attn", "m": "mlp", "b": "", "block": "", "blocks": "", "attention": "attn"}
_IN_ATTENTION = {"k", "q", "v", "z", "rot_k", "rot_q", "result", "attn_scores", "pattern"}
_IN_MLP = {"pre", "post", "mid", "pre_linear"}
_IN_LAYER_NORM = {"scale", "normalized"}


def act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """Return the full name of an activation, as ``transformer_lens.utilities.get_act_name`` gives it.

    Args:
        name: a full name, which is returned as it is; or a short one, which may hold layer and layer type: ``q``,
            ``k6``, ``scale4ln1``.
        layer: number of the block.
        layer_type: ``attn``, ``mlp``, ``ln1``, ``ln2`` or an abbreviation (``a``, ``m``, ``b`` for the block itself);
            only ``scale`` and ``normalized`` need it.

    Example:
        >>> act_name("q", 0), act_name("k6"), act_name("scale", 1, "ln2")
        ('blocks.0.attn.hook_q', 'blocks.6.attn.hook_k', 'blocks.1.ln2.hook_scale')
        >>> act_name("embed"), act_name("scale"), act_name("attn_logits", 2)
        ('hook_embed', 'ln_final.hook_scale', 'blocks.2.attn.hook_attn_scores')
    """
    if ("." in name or name.startswith("hook_")) and layer is None and layer_type is None:
        return name
    if match := re.match(r"([a-z]+)(\d+)(.*)", name):
        name, layer, layer_type = match.groups()
    name = _ALIASES.get(name, name)
    if name in _IN_ATTENTION:
        layer_type = "attn"
    elif name in _IN_MLP:
        layer_type = "mlp"
    else:
        layer_type = _LAYER_TYPES.get(layer_type or "", layer_type)
    if name in _IN_LAYER_NORM and layer is None:
        layer_type = "ln_final"
    parts = [] if layer is None else [f"blocks.{layer}"]
    return ".".join([*parts, *([layer_type] if layer_type else []), f"hook_{name}"])
