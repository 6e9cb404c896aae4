"""Continue a prompt by every way of decoding, with random and with trained weights, and print one table.

    python demos/decoding.py [--model FOLDER] ["Once upon a time"]

Without ``--model``, the script first trains a small model for half a minute, on stories of
`gptladder.training.data.stories`. The model learns to spell, and some grammar.
"""

import argparse
import time
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gptladder import GPT2, GPT2Config
from gptladder.sampling import PromptLookup, SamplingParams, beam_search, generate, speculate
from gptladder.tokenizer import BPETokenizer, Tokenizer, load_tokenizer
from gptladder.training.data.stories import story


def train(seconds: float) -> tuple[GPT2, GPT2, Tokenizer]:
    """Return a small model with its initial weights, the same model after training, and their tokenizer."""
    text = "\n\n".join(story(seed=0, index=index) for index in range(400))
    tokenizer = BPETokenizer.train(text, vocab_size=512)
    tokens = torch.tensor(tokenizer.encode(text))
    config = GPT2Config(d_model=96, n_layers=2, n_heads=4, d_vocab=tokenizer.n_vocab, n_ctx=128)
    torch.manual_seed(1337)
    fresh, model = GPT2(config), GPT2(config)
    fresh.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    began = time.monotonic()
    for step in count(1):
        starts = torch.randint(len(tokens) - 65, (16, 1))
        windows = tokens[starts + torch.arange(65)]
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if time.monotonic() - began > seconds:
            print(f"trained for {step} steps, to a loss of {loss.item():.2f}")
            break
    return fresh.eval(), model.eval(), tokenizer


def ways(model: GPT2, tokenizer: Tokenizer, prompt: str, new: int) -> dict[str, str]:
    """Return the continuation by each way of decoding."""

    def sampled(**settings: Any) -> str:
        params = SamplingParams(**settings)
        return repr(generate(model, prompt, params, tokenizer=tokenizer, max_new_tokens=new)[0].text)

    beam = beam_search(model, prompt, tokenizer=tokenizer, num_beams=4, max_new_tokens=new)[0]
    greedy = SamplingParams(temperature=0)
    guessed = speculate(model, prompt, greedy, draft=PromptLookup(), tokenizer=tokenizer, max_new_tokens=new)
    return {
        "greedy": sampled(temperature=0),
        "temperature 0.5": sampled(temperature=0.5),
        "temperature 1.0": sampled(temperature=1.0),
        "temperature 1.5": sampled(temperature=1.5),
        "top-k 10": sampled(top_k=10),
        "top-p 0.9": sampled(top_p=0.9),
        "4 beams": repr(beam.text),
        "greedy, speculative": f"{guessed.text!r} ({guessed.accepted} of {guessed.proposed} guesses accepted)",
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="Once upon a time", help="text to continue")
    parser.add_argument("--model", help="a model folder with its tokenizer (default: train a small model)")
    parser.add_argument("--new", type=int, default=30, help="largest number of new tokens (default: 30)")
    parser.add_argument("--seconds", type=float, default=30, help="time for training (default: 30)")
    arguments = parser.parse_args(argv)
    if arguments.model:
        trained, tokenizer = GPT2.from_pretrained(arguments.model), load_tokenizer(arguments.model)
        torch.manual_seed(1337)
        fresh = GPT2(trained.config).eval()
    else:
        fresh, trained, tokenizer = train(arguments.seconds)

    table = Table(title=escape(f"{arguments.prompt} …"), show_lines=True)
    for name in ("way", "random weights", "trained weights"):
        table.add_column(name, ratio=1 if name == "way" else 3)
    columns = [ways(model, tokenizer, arguments.prompt, arguments.new) for model in (fresh, trained)]
    for way in columns[0]:
        table.add_row(way, *(escape(column[way]) for column in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
