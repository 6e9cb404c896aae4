"""How long `gptladder climb` takes for a verdict: on a right layer, on wrong ones, on a whole file.

    python benchmarks/climbing.py [--rounds N]

Each file holds layers in nanoGPT's manner, with one edit. Cold is the command in a new process, from its start to its
exit; warm is a second call of `climb` in one process. Beside them stands what a new process needs for ``import torch``
alone, in the same round.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import busy_elsewhere, machine, print_table, spread, wait_for_quiet, write_result

from gptladder.ladder import climb

SOURCE = Path(__file__).parents[1] / "tests" / "ladder" / "layers" / "nanogpt.py"
RESULT = Path(__file__).parent / "results" / "cpu" / "climbing.json"

# What is tried, the class (all that the file holds if none), and the edit: this text for that.
TRIED: dict[str, tuple[str, str, str]] = {
    "attention, right": ("CausalSelfAttention", "", ""),
    "attention, its mistake named": ("CausalSelfAttention", " / math.sqrt(k.size(-1))", ""),
    "attention, its mistake located": ("CausalSelfAttention", "F.softmax(att, dim=-1)", "F.softmax(att, dim=-1).sin()"),
    "block, its mistake named": ("Block", "self.mlp(self.ln_2(x))", "self.mlp(x)"),
    "model, its mistake named": ("GPT", "for block in self.h:", "for block in self.h[:-1]:"),
    "model, its mistake located": ("GPT", "self.wpe(torch.arange(idx.shape[1]))", "self.wpe(idx % 3)"),
    "the whole file, right": ("", "", ""),
    "the whole file, attention wrong": ("", " / math.sqrt(k.size(-1))", ""),
}


def written(folder: Path, name: str) -> str:
    """Write the file of one trial, and return what the command is given."""
    chosen, text, other = TRIED[name]
    source = SOURCE.read_text(encoding="utf-8").partition("\ndef _config")[0]  # no adapters
    if source.count(text) < 1:
        raise SystemExit(f"{SOURCE.name} has no {text!r} any more: change TRIED")
    path = folder / f"{name.replace(', ', '_').replace(' ', '_')}.py"
    path.write_text(source.replace(text, other) if text else source, encoding="utf-8")
    return f"{path}:{chosen}" if chosen else str(path)


def seconds(work: Callable[[], object]) -> float:
    """Return how long some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def command(*arguments: str) -> float:
    """Return the seconds of a new Python process."""
    return seconds(lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=False))


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    rounds = parser.parse_args().rounds
    cold: dict[str, list[float]] = {name: [] for name in ("import torch", *TRIED)}
    warm: dict[str, list[float]] = {name: [] for name in TRIED}
    busy = 0.0
    with tempfile.TemporaryDirectory() as folder:
        files = {name: written(Path(folder), name) for name in TRIED}
        for each in range(rounds + 1):
            wait_for_quiet()
            busy = max(busy, busy_elsewhere())
            cold["import torch"].append(command("-c", "import torch"))
            for name, file in files.items():
                cold[name].append(command("-m", "gptladder", "climb", file))
                warm[name].append(seconds(lambda file=file: climb(file)))
            if each == 0:  # the first round warms the disk, and this process
                for times in (*cold.values(), *warm.values()):
                    times.clear()
    rows = [
        [name, *(f"{x['median']:.2f} ({x['least']:.2f}-{x['most']:.2f})" for x in map(spread, columns))]
        for name, columns in ((name, [cold[name], *([warm[name]] if name in warm else [])]) for name in cold)
    ]
    print_table("seconds", ["", "cold", "warm"], [[*row, ""][:3] for row in rows], foreign=busy)
    found = {"cold": {name: spread(x) for name, x in cold.items()}, "warm": {n: spread(x) for n, x in warm.items()}}
    write_result(RESULT, {"machine": machine(), "rounds": rounds, "other_work": round(busy, 2), **found})


if __name__ == "__main__":
    main()
