"""Kinds of heads: which look at the token before, at the same token earlier, or at what came after it?

    python demos/induction_heads.py [--model gpt2]

The prompt repeats a sentence, so that the second time each token has an earlier occurrence, and something that came
after it: `gptladder.lens.head_scores`. The picture shows the attention of the head that does most of the last.
"""

from collections.abc import Sequence
from typing import get_args

from story import arguments, save, show, story_model

from gptladder.lens import HeadKind, Labelled, attention_patterns, head_scores, read_prompt

SENTENCE = " Mia the fox had a red kite and a blue boat."


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, argv)
    model, tokenizer = story_model(given)
    text = 2 * SENTENCE
    show(model, tokenizer, text)
    tokens = read_prompt(model, text, tokenizer).tokens
    kinds: list[HeadKind] = list(get_args(HeadKind))
    most: dict[HeadKind, tuple[int, int]] = {}
    for kind in kinds:
        scores = head_scores(model, tokens, kind)
        layer, head = map(int, scores.largest().values())
        most[kind] = layer, head
        print(f"most of {kind}: layer {layer}, head {head}, {scores.values.max():.0%} of its attention")
    found = attention_patterns(model, text, tokenizer=tokenizer)
    axes = {"query": found.axes["query"], "key": found.axes["key"]}
    layer, head = most["induction"]
    title = f"attention of L{layer}H{head}, which is most like an induction head"
    save(Labelled(found.values[layer, head], axes, title=title), given.out / "induction_heads.png")


if __name__ == "__main__":
    main()
