"""Mean ablation: how much worse the model foretells repeated tokens when a head says the same to every prompt.

    python demos/mean_ablation.py [--model gpt2]

A head's output is replaced by its mean over the prompts, at each position: what it says on average stays, what it says
of this prompt goes.
"""

from collections.abc import Callable, Sequence

import torch
from repeated_tokens import PERIOD, arguments, figure, heat, loss_when_repeated, prepare, save
from torch import Tensor

from gptladder import GPT2


@torch.inference_mode()
def mean_ablation(model: GPT2, tokens: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """By how much ``loss``, of the logits, rises without each head: [n_layers n_heads]."""
    config = model.config
    plain = loss(model(tokens))
    risen = torch.empty(config.n_layers, config.n_heads, dtype=plain.dtype)
    for layer in range(config.n_layers):
        for head in range(config.n_heads):

            def ablate(z: Tensor, *, hook: object, head: int = head) -> None:
                z[:, :, head] = z[:, :, head].mean(0)

            hook = (f"blocks.{layer}.attn.hook_z", ablate)
            risen[layer, head] = loss(model.run_with_hooks(tokens, fwd_hooks=[hook])) - plain
    return risen


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, argv)
    model, tokens = prepare(given)

    def loss(logits: Tensor) -> Tensor:
        return loss_when_repeated(logits, tokens, PERIOD)

    risen = mean_ablation(model, tokens, loss)
    layer, head = divmod(int(risen.argmax()), model.config.n_heads)
    print(f"loss on repeated tokens rises most without layer {layer}, head {head}: by {risen.max():.3f}")
    drawn, (axes,) = figure(1)
    heat(axes, risen, title="rise of the loss without each head (nats)", x="head", y="layer")
    save(drawn, given.out / "mean_ablation.png")


if __name__ == "__main__":
    main()
