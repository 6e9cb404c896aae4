"""Which heads are induction heads: how much each attends to the token after the last occurrence of the present one.

    python demos/induction_heads.py [--model gpt2]

Also which attend to the token before, and which to an earlier occurrence itself. The scores are those of
``transformer_lens.head_detector``, but for what they are divided by (see `head_scores`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from repeated_tokens import PERIOD, arguments, figure, heat, prepare, save
from torch import Tensor

from gptladder import GPT2


def previous_token(tokens: Tensor) -> Tensor:
    """[batch seq] -> [batch query_pos key_pos]: where each query's predecessor is."""
    seq = tokens.shape[1]
    return torch.eye(seq, dtype=torch.bool).roll(-1, 1).tril(-1).expand(len(tokens), -1, -1)


def duplicate_token(tokens: Tensor) -> Tensor:
    """[batch seq] -> [batch query_pos key_pos]: where the query's token stood before."""
    return (tokens[:, :, None] == tokens[:, None, :]).tril(-1)


def induction(tokens: Tensor) -> Tensor:
    """[batch seq] -> [batch query_pos key_pos]: what came after the query's token, where that stood before."""
    return F.pad(duplicate_token(tokens), (1, 0))[:, :, :-1]


PATTERNS = {"induction": induction, "previous token": previous_token, "duplicate token": duplicate_token}


@torch.inference_mode()
def head_scores(model: GPT2, tokens: Tensor, wanted: Tensor) -> Tensor:
    """[n_layers n_heads]: the share of its attention that a head gives to ``wanted`` [batch query_pos key_pos].

    The mean is over the queries for which anything is wanted. ``detect_head`` takes it over all of them, so that its
    score is smaller by the share of such queries.
    """
    cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))[1]
    patterns = torch.stack([cache["pattern", layer] for layer in range(model.config.n_layers)])
    asking = wanted.any(-1).sum()
    return (patterns * wanted[:, None]).sum((1, 3, 4)) / asking


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, argv)
    model, tokens = prepare(given)
    drawn, axes = figure(len(PATTERNS) + 1)
    for name, place in zip(PATTERNS, axes, strict=False):
        scores = head_scores(model, tokens, PATTERNS[name](tokens))
        heat(place, scores, title=f"{name}: share of attention", x="head", y="layer", most=1)
        layer, head = divmod(int(scores.argmax()), model.config.n_heads)
        print(f"most of {name}: layer {layer}, head {head}, {scores.max():.0%} of its attention")
        if name == "induction":
            pattern = model.run_with_cache(tokens[:1], names_filter=f"blocks.{layer}.attn.hook_pattern")[1]
            title = f"layer {layer}, head {head}: {PERIOD} tokens, twice"
            heat(axes[-1], pattern["pattern", layer][0, head], title=title, x="key", y="query", most=1)
            axes[-1].set_yticks([0, PERIOD])
    save(drawn, given.out / "induction_heads.png")


if __name__ == "__main__":
    main()
