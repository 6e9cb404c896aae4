"""Use our layers in a model that is not a language model: it decides whether brackets are balanced.

    python demos/layers_in_a_classifier.py [--steps 300]

Each layer takes plain keywords. Attention is causal, so only the last position can attend to all brackets. An `Unembed`
whose vocabulary is the two answers reads the answer at that position.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptladder.components import Block, Embed, LayerNorm, PosEmbed, Unembed

LENGTH = 16


class Classifier(nn.Module):
    """From brackets (0: opening, 1: closing) to the logits of "no" and "yes"."""

    def __init__(self, d_model: int = 32) -> None:
        super().__init__()
        self.embed = Embed(d_vocab=2, d_model=d_model)
        self.pos_embed = PosEmbed(n_ctx=LENGTH, d_model=d_model)
        self.blocks = nn.Sequential(*(Block(d_model=d_model, n_heads=4, act_fn="relu") for _ in range(2)))
        self.ln = LayerNorm(d_model=d_model)
        self.answer = Unembed(d_model=d_model, d_vocab=2)

    def forward(self, brackets: Tensor) -> Tensor:
        """[batch LENGTH] -> [batch 2]."""
        residual = self.blocks(self.embed(brackets) + self.pos_embed(brackets))
        return self.answer(self.ln(residual[:, -1:]))[:, 0]


def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return strings with as many opening as closing brackets, half of them balanced, and the answers, 0 or 1."""
    # Only one random string in nine is balanced, so draw many and choose from them.
    orders = torch.rand(20 * batch, LENGTH, generator=generator).argsort(1)
    brackets = orders % 2
    balanced = ((1 - 2 * brackets).cumsum(1) >= 0).all(1)
    chosen = torch.cat([brackets[balanced][: batch // 2], brackets[~balanced][: batch - batch // 2]])
    return chosen, torch.arange(batch).lt(batch // 2).long()


@torch.inference_mode()
def accuracy(model: nn.Module) -> float:
    """Return the share of right answers for 2000 other strings."""
    brackets, answers = draw(2000, torch.Generator().manual_seed(1))
    return (model(brackets).argmax(-1) == answers).float().mean().item()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="steps of training (default: 300)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    model, generator = Classifier(), torch.Generator().manual_seed(0)
    print(f"before training: {accuracy(model):.0%} right")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(arguments.steps):
        brackets, answers = draw(128, generator)
        F.cross_entropy(model(brackets), answers).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"after {arguments.steps} steps: {accuracy(model):.1%} right")


if __name__ == "__main__":
    main()
