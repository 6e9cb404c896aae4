"""Activation patching by head and position: which head, and where, carries what a changed token has taken away?

    python demos/activation_patching.py [--model gpt2]

The clean prompt repeats itself: … A B … A, and B follows. In the corrupted one the first A is another token. One head's
output at one position is taken from the clean run and put into the corrupted one: `gptladder.lens.activation_patching`.
"""

from collections.abc import Sequence

import torch
from repeated_tokens import PERIOD, arguments, figure, heat, prepare, save
from torch import Tensor

from gptladder.lens import activation_patching


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, argv)
    model, tokens = prepare(given, batch=1)
    at = PERIOD // 2
    clean, answer = tokens[:, : PERIOD + at + 1], tokens[0, at + 1]
    corrupted = clean.clone()
    corrupted[0, at] = next(token for token in range(model.d_vocab) if token not in tokens)

    def log_probability(logits: Tensor) -> Tensor:
        return logits[:, -1].log_softmax(-1)[:, answer]

    with torch.inference_mode():
        low, high = log_probability(model(corrupted)), log_probability(model(clean))
    print(f"log-probability of the answer: clean {high.item():.2f}, corrupted {low.item():.2f}")
    patched = activation_patching(model, clean, corrupted, log_probability)
    flat = (patched.values.flatten(0, 1) - low) / (high - low)
    rows = [f"L{layer}H{head}" for layer in range(model.config.n_layers) for head in range(model.config.n_heads)]
    for index in flat.amax(1).topk(min(6, len(rows))).indices:
        print(f"{rows[index]} at position {flat[index].argmax()}: {flat[index].max():.0%} restored")
    drawn, (axes,) = figure(1, width=8, height=1.8 + 0.2 * len(rows))
    title = f"share restored; A at {at} and {PERIOD + at}, B at {at + 1}"
    heat(axes, flat, title=title, x="position", y="head", rows=rows)
    save(drawn, given.out / "activation_patching.png")


if __name__ == "__main__":
    main()
