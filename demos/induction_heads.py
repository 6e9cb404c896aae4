"""Which heads are induction heads: how much each attends to the token after the last occurrence of the present one.

    python demos/induction_heads.py [--model gpt2]

Also which heads attend to the token before, and which to an earlier occurrence itself: `gptladder.lens.head_scores`.
"""

from collections.abc import Sequence
from typing import get_args

from repeated_tokens import PERIOD, arguments, figure, heat, prepare, save

from gptladder.lens import HeadKind, attention_patterns, head_scores


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, argv)
    model, tokens = prepare(given)
    kinds: list[HeadKind] = list(get_args(HeadKind))
    drawn, axes = figure(len(kinds) + 1)
    for kind, place in zip(kinds, axes, strict=False):
        scores = head_scores(model, tokens, kind)
        heat(place, scores.values, title=f"{kind}: share of attention", x="head", y="layer", most=1)
        layer, head = map(int, scores.largest().values())
        print(f"most of {kind}: layer {layer}, head {head}, {scores.values.max():.0%} of its attention")
        if kind == "induction":
            pattern = attention_patterns(model, tokens[0]).values[layer, head]
            heat(axes[-1], pattern, title=f"L{layer}H{head}: {PERIOD} tokens, twice", x="key", y="query", most=1)
            axes[-1].set_yticks([0, PERIOD])
    save(drawn, given.out / "induction_heads.png")


if __name__ == "__main__":
    main()
