"""How well a model trained on generated stories keeps the names in them.

    python benchmarks/names.py runs/tinystories/final

In stories that no training saw, at each mention of a name that the story has mentioned before, the model gives a
probability to every name of that kind (heroes and their playmates, or helpers). What is printed is the share of the
right one among them, averaged over the mentions of 200 stories; choosing at random would give 1/24 and 1/38. Mentions
after a second name of the kind are left out, because from there on the story itself may choose between the two.

With the names it prints the loss on those stories, each read from its own beginning: no context is cut off, as it is
where a run's validation windows begin in the middle of a story. Next to it stands what the grammar itself leaves
open: the mean of -log p(story) over its random choices, for each token. No model can have a lower loss on average.
"""

import argparse
import math
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measure import machine, print_table, write_result

from gptladder.assembly import GPT2
from gptladder.tokenizer import Tokenizer, load_tokenizer
from gptladder.training.data import stories as grammar

SEED = 1  # of the stories; training uses 1337


@torch.no_grad()
def story_names(model: GPT2, tokenizer: Tokenizer, stories: int) -> dict[str, dict[str, float]]:
    """Return the mean share of the right name, and the mentions it was averaged over, for heroes and for helpers."""
    texts = [grammar.story(SEED, index) for index in range(stories)]
    shares = {
        kind: list(name_shares(model, tokenizer, texts, list(names)))
        for kind, names in (("heroes", grammar.HEROES), ("helpers", grammar.HELPERS))
    }
    return {kind: {"share": statistics.fmean(own), "mentions": len(own)} for kind, own in shares.items()}


def name_shares(model: GPT2, tokenizer: Tokenizer, texts: list[str], names: list[str]) -> Iterator[float]:
    """Give the share of the right name among all names, at each mention of the only name mentioned before."""
    ids = [_only(tokenizer.encode(f" {name}"), name) for name in names]
    for text in texts:
        tokens = tokenizer.encode(text)[: model.config.n_ctx]
        probabilities = model(torch.tensor([tokens]))[0].softmax(-1)
        met: set[int] = set()
        for position, token in enumerate(tokens):
            if token in ids:
                if met == {token}:
                    among = probabilities[position - 1]
                    yield float(among[token] / among[ids].sum())
                met.add(token)


def _only(ids: list[int], name: str) -> int:
    if len(ids) != 1:
        raise SystemExit(f"the name {name} is {len(ids)} tokens of this vocabulary, and the measure needs one")
    return ids[0]


def loss_from_the_beginning(model: GPT2, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Return the mean loss of a token of stories that each begin a sequence, after an end-of-text token."""
    total = count = 0
    for text in texts:
        if tokenizer.eot_id is None:
            raise SystemExit("the tokenizer has no end-of-text token, which the loss of a whole story needs")
        tokens = [tokenizer.eot_id, *tokenizer.encode(text), tokenizer.eot_id][: model.config.n_ctx + 1]
        logits = model(torch.tensor([tokens[:-1]]))[0]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="sum"))
        count += len(tokens) - 1
    return total / count


class _Draws(random.Random):
    """Random numbers that a caller fixed beforehand, and the next place in them."""

    def __init__(self, draws: list[float]) -> None:
        super().__init__(0)
        self.draws, self.place = draws, 0

    def random(self) -> float:
        self.place += 1
        return self.draws[self.place - 1]


def grammar_floor(tokenizer: Tokenizer, count: int) -> tuple[float, float]:
    """Estimate the entropy of a generated story for each of its tokens, and the estimate's standard error.

    A story is a function of some 40 draws, each among a few options. Its probability is taken as the product, over the
    draws, of the share of options that leave the text as it is (the other draws being what they are). Choices that do
    not show cost nothing in this way.
    """
    random_class, pick, pick_two = random.Random, grammar._pick, grammar._pick_two
    sizes: list[tuple[int, int]] = []  # each draw's place, and its number of options

    def told(draws: list[float]) -> str:
        sizes.clear()
        random.Random = lambda _: _Draws(draws)  # pyright: ignore[reportAttributeAccessIssue]
        return grammar.story(0, 0)

    def noted_pick(rng: Any, options: Any) -> Any:
        sizes.append((rng.place, len(options)))
        return pick(rng, options)

    def noted_pick_two(rng: Any, options: Any) -> Any:
        sizes.extend([(rng.place, len(options)), (rng.place + 1, len(options) - 1)])
        return pick_two(rng, options)

    source = random.Random(SEED)
    nats, tokens = [], []
    grammar._pick, grammar._pick_two = noted_pick, noted_pick_two
    try:
        for _ in range(count):
            draws = [source.random() for _ in range(200)]
            text = told(draws)
            cost = 0.0
            for place, options in list(sizes):
                chosen = int(draws[place] * options)
                same = 1 + sum(
                    told([*draws[:place], (other + 0.5) / options, *draws[place + 1 :]]) == text
                    for other in range(options)
                    if other != chosen
                )
                cost -= math.log(same / options)
            nats.append(cost)
            tokens.append(len(tokenizer.encode(text)) + 1)
    finally:
        random.Random, grammar._pick, grammar._pick_two = random_class, pick, pick_two
    error = statistics.stdev([a / b for a, b in zip(nats, tokens, strict=True)]) / math.sqrt(count)
    return sum(nats) / sum(tokens), error


@torch.no_grad()
def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model's folder with its tokenizer")
    parser.add_argument("--stories", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    model = GPT2.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(arguments.model)
    texts = [grammar.story(SEED, index) for index in range(arguments.stories)]
    floor, error = grammar_floor(tokenizer, arguments.stories)
    result = {
        "machine": machine(),
        "stories": arguments.stories,
        "names": story_names(model, tokenizer, arguments.stories),
        "loss_from_the_beginning": loss_from_the_beginning(model, tokenizer, texts),
        "grammar": {"nats_per_token": floor, "standard_error": error},
    }
    print_table(
        f"{arguments.model}, on {arguments.stories} unseen stories",
        ["", "share of the right name", "mentions"],
        [[kind, f"{own['share']:.4f}", f"{own['mentions']:,}"] for kind, own in result["names"].items()],
        foreign=0.0,
    )
    print(f"loss from the beginning {result['loss_from_the_beginning']:.4f}; the grammar: {floor:.4f} ± {error:.4f}")
    if arguments.json:
        write_result(arguments.json, result)


if __name__ == "__main__":
    main()
