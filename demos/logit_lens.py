"""The logit lens: what the story model would say if it stopped after each layer.

    python demos/logit_lens.py [--model gpt2]

The residual stream after each layer goes through the final layer norm and the unembedding: `gptladder.lens.logit_lens`.
"""

from collections.abc import Sequence

from story import STORY, arguments, save, show, story_model

from gptladder.lens import Labelled, logit_lens


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, argv)
    model, tokenizer = story_model(given)
    show(model, tokenizer, STORY)
    found = logit_lens(model, STORY, tokenizer=tokenizer)
    tokens = found.axes["token"]
    for stage, logits in zip(found.axes["stage"], found.values, strict=True):
        best = [tokens[token] for token in logits[-6:].argmax(-1).tolist()]
        print(f"{stage:>8}: the last six predictions are {best}")
    # The probability of the token that really comes next, at each position but the last.
    following = found.values.new_tensor(tokenizer.encode(STORY)[1:]).long().expand(len(found.values), -1)
    right = found.values[:, :-1].softmax(-1).gather(-1, following[..., None])[..., 0]
    axes = {"after": found.axes["stage"], "position": found.axes["position"][:-1]}
    save(Labelled(right, axes, title="probability of the next token"), given.out / "logit_lens.png")


if __name__ == "__main__":
    main()
