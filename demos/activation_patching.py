"""Activation patching: which head, and where, carries the hero's name to the place where it is needed?

    python demos/activation_patching.py [--model gpt2]

In the corrupted prompt the hero is another animal with another name. One head's output at one position is taken from
the clean run and put into the corrupted one: `gptladder.lens.activation_patching`. What brings the clean answer back?
"""

from collections.abc import Sequence

import torch
from story import HERO, OTHER, OTHER_STORY, STORY, arguments, one_token, save, show, story_model
from torch import Tensor

from gptladder.lens import Labelled, activation_patching, read_prompt


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, argv)
    model, tokenizer = story_model(given)
    for text in (STORY, OTHER_STORY):
        show(model, tokenizer, text)
    right, wrong = one_token(tokenizer, HERO), one_token(tokenizer, OTHER)

    def preference(logits: Tensor) -> Tensor:
        return logits[:, -1, right] - logits[:, -1, wrong]

    with torch.inference_mode():
        high, low = (preference(model(read_prompt(model, text, tokenizer).tokens)) for text in (STORY, OTHER_STORY))
    print(f"logit of {HERO!r} less that of {OTHER!r}: clean {high.item():.2f}, corrupted {low.item():.2f}")
    patched = activation_patching(model, STORY, OTHER_STORY, preference, tokenizer=tokenizer)
    restored = Labelled(
        (patched.values - low) / (high - low), patched.axes, title="share restored by each head's output"
    )
    flat = restored.values.flatten()
    for index in flat.topk(min(6, len(flat))).indices:
        layer, head, position = (int(i) for i in torch.unravel_index(index, restored.values.shape))
        print(f"L{layer}H{head} at {restored.axes['position'][position]}: {flat[index]:.0%} restored")
    save(restored, given.out / "activation_patching.png")


if __name__ == "__main__":
    main()
