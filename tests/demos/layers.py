"""The layers that the demos put into other models, one at a time and all together."""

import pytest
import torch

from gptladder.components import MLP, Attention, Block, Embed, LayerNorm, PosEmbed, Unembed

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-5}  # float32: that of the whole model
OURS = {
    "embed": Embed,
    "pos_embed": PosEmbed,
    "layer_norm": LayerNorm,
    "attention": Attention,
    "mlp": MLP,
    "block": Block,
    "unembed": Unembed,
}
EACH = pytest.mark.parametrize("layers", [*((name,) for name in OURS), tuple(OURS)], ids=[*OURS, "all"])
TOKENS = torch.randint(17, (3, 7), generator=torch.Generator().manual_seed(1))
