"""Direct logit attribution: which heads and MLPs make the story model say the hero's name.

    python demos/direct_logit_attribution.py [--model gpt2]

The logits are a sum over what each part of the model adds to the residual stream:
`gptladder.lens.direct_logit_attribution`. The answer here is the name of the hero, compared with another name.
"""

from collections.abc import Sequence

from story import HERO, OTHER, STORY, arguments, one_token, save, show, story_model

from gptladder.lens import direct_logit_attribution


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, argv)
    model, tokenizer = story_model(given)
    show(model, tokenizer, STORY)
    right, wrong = one_token(tokenizer, HERO), one_token(tokenizer, OTHER)
    found = direct_logit_attribution(model, STORY, right, wrong, tokenizer=tokenizer)
    last = dict(zip(found.axes["part"], found.values[:, -1].tolist(), strict=True))
    print(f"at the end, the logit of {HERO!r} is above that of {OTHER!r} by {sum(last.values()):.2f}, of which")
    for part in sorted(last, key=lambda part: -abs(last[part]))[:8]:
        print(f"  {part:>10} adds {last[part]:+.2f}")
    save(found, given.out / "direct_logit_attribution.png")


if __name__ == "__main__":
    main()
