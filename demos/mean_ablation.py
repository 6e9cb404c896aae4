"""Mean ablation: how much worse the model predicts repeated tokens if a head's output is the same for all prompts.

    python demos/mean_ablation.py [--model gpt2]

A head's output is replaced by its mean over the prompts, at each position: `gptladder.lens.ablation`.
"""

from collections.abc import Sequence

from repeated_tokens import PERIOD, arguments, figure, heat, loss_when_repeated, prepare, save
from torch import Tensor

from gptladder.lens import ablation


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, argv)
    model, tokens = prepare(given)

    def loss(logits: Tensor) -> Tensor:
        return loss_when_repeated(logits, tokens, PERIOD)

    rise = ablation(model, tokens, loss)
    layer, head = rise.largest().values()
    print(f"loss on repeated tokens rises most without layer {layer}, head {head}: by {rise.values.max():.3f}")
    drawn, (axes,) = figure(1)
    heat(axes, rise.values, title="rise of the loss without each head (nats)", x="head", y="layer")
    save(drawn, given.out / "mean_ablation.png")


if __name__ == "__main__":
    main()
