"""Mean ablation: which heads does the story model need to remember the hero's name?

    python demos/mean_ablation.py [--model gpt2]

The story begins with one hero after another. A head's output is replaced by its mean over these prompts, at each
position, so that it can no longer tell one hero from another: `gptladder.lens.ablation`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from story import BEGINNING, HEROES, STORY, arguments, one_token, save, show, story_model
from torch import Tensor

from gptladder.lens import ablation


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, argv)
    model, tokenizer = story_model(given)
    show(model, tokenizer, STORY)
    encoded = {name: tokenizer.encode(BEGINNING.format(kind=kind, name=name)) for kind, name in HEROES.items()}
    # A hero of more or fewer tokens than the first would shift all positions, and is left out.
    alike = [name for name, ids in encoded.items() if len(ids) == len(encoded["Mia"])]
    tokens = torch.tensor([encoded[name] for name in alike])
    names = torch.tensor([one_token(tokenizer, f" {name}") for name in alike])

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, -1], names)

    with torch.inference_mode():
        print(f"loss of the name, over {len(alike)} heroes: {loss(model(tokens)):.3f}")
    rise = ablation(model, tokens, loss)
    where = rise.largest()
    print(f"without head {where['head']} of layer {where['layer']} it rises most: by {rise.values.max():.3f}")
    save(rise, given.out / "mean_ablation.png")


if __name__ == "__main__":
    main()
