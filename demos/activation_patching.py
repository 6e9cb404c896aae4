"""Activation patching by head and position: which head, and where, carries what a changed token has taken away?

    python demos/activation_patching.py [--model gpt2]

The clean prompt repeats itself: … A B … A, and B follows. In the corrupted one the first A is another token. One head's
output at one position is taken from the clean run and put into the corrupted one (Meng et al. 2022; in TransformerLens,
``patching.get_act_patch_attn_head_out_by_pos``).
"""

from collections.abc import Callable, Sequence

import torch
from repeated_tokens import PERIOD, arguments, figure, heat, prepare, save
from torch import Tensor

from gptladder import GPT2


@torch.inference_mode()
def patch_heads(model: GPT2, clean: Tensor, corrupted: Tensor, metric: Callable[[Tensor], Tensor]) -> Tensor:
    """The metric with one head's output at one position as in the clean run: [n_layers n_heads seq].

    Args:
        clean, corrupted: one prompt each, [1 seq].
        metric: logits [batch seq d_vocab] to one number each, [batch].
    """
    seq, config = clean.shape[1], model.config
    _, cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_z"))
    every = torch.arange(seq)
    found = torch.empty(config.n_layers, config.n_heads, seq, dtype=model.embed.W_E.dtype)
    for layer in range(config.n_layers):
        for head in range(config.n_heads):

            def patch(z: Tensor, *, hook: object, layer: int = layer, head: int = head) -> None:
                # Row i is patched at position i, so that one call tries them all.
                z[every, every, head] = cache["z", layer][0, :, head]

            hook = (f"blocks.{layer}.attn.hook_z", patch)
            found[layer, head] = metric(model.run_with_hooks(corrupted.expand(seq, -1), fwd_hooks=[hook]))
    return found


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
    restored = (patch_heads(model, clean, corrupted, log_probability) - low) / (high - low)
    rows = [f"L{layer}H{head}" for layer in range(model.config.n_layers) for head in range(model.config.n_heads)]
    flat = restored.flatten(0, 1)
    for index in flat.amax(1).topk(min(6, len(rows))).indices:
        print(f"{rows[index]} at position {flat[index].argmax()}: {flat[index].max():.0%} restored")
    drawn, (axes,) = figure(1, width=8, height=1.8 + 0.2 * len(rows))
    title = f"share restored; A at {at} and {PERIOD + at}, B at {at + 1}"
    heat(axes, flat, title=title, x="position", y="head", rows=rows)
    save(drawn, given.out / "activation_patching.png")


if __name__ == "__main__":
    main()
