"""The command lines ``gptladder climb``, ``gptladder ladder`` and ``gptladder parity``."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ..extras import import_extra
from ..options import parse

Layer = Annotated[str | None, tyro.conf.arg(metavar="FILE.py:NAME")]


@dataclass(frozen=True)
class ClimbArguments:
    """Try your own layers against TransformerLens's, in order; stop at the first that is wrong, and say what is wrong.

    A layer is a class, or an adapter (docs/your-layer.md). It runs in a process of its own, with your user's rights.
    """

    embed: Layer = None
    """Tokens to vectors."""
    pos_embed: Layer = None
    """Tokens to the vectors of their positions."""
    layernorm: Layer = None
    """Layer normalisation."""
    attention: Layer = None
    """Causal self-attention."""
    mlp: Layer = None
    """The feed-forward layer."""
    block: Layer = None
    """Attention and MLP around the residual stream."""
    unembed: Layer = None
    """Vectors to logits."""
    model: Layer = None
    """All of it, tokens to logits."""
    cases: int = 25
    """Random configurations for each layer."""
    seed: int = 0
    """Of the configurations and of every number in them."""
    time_limit: float = 10.0
    """Seconds that a layer has for one configuration."""
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE.html")] = None
    """Write the report as a page to look at, too."""
    json: bool = False
    """Print the report for a program to read, and nothing else."""


@dataclass(frozen=True)
class LadderArguments:
    """Try every layer against TransformerLens's and transformers', in order; stop at the first that differs."""

    cases: int = 25
    """Random configurations for each layer and reference."""
    seed: int = 0
    """Of the configurations and of every number in them."""


@dataclass(frozen=True)
class ParityArguments:
    """Prove that this GPT-2 is Hugging Face's and TransformerLens's: by layers, whole at full size, there and back."""

    model: Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER")] = None
    """Real weights for the whole-model part: a name on the hub or a folder. Random ones where it is not given."""
    cases: int = 25
    """Random configurations for each layer and reference."""
    seed: int = 0
    """Of the configurations and of every number in them."""
    out: Path = Path("reports")
    """Folder for parity.json and parity.png."""


def climb(argv: list[str]) -> int:
    """Run ``gptladder climb``; the exit status is 0 where every layer is right."""
    arguments = parse(ClimbArguments, argv, prog="gptladder climb")
    _at_least_one(arguments.cases)
    layers = {each.name: getattr(arguments, each.name) for each in fields(ClimbArguments) if each.type is Layer}
    console = Console(quiet=arguments.json, highlight=False)
    with console.status("loading the references") as status, _references():
        from .climbing import Tried
        from .climbing import climb as climb_with

        def show(tried: Tried) -> None:
            from .report.terminal import CLIMB_HEAD, climb_line

            if tried.rung == next(name for name, layer in layers.items() if layer).replace("_", "-"):
                console.print(CLIMB_HEAD)
            console.print(climb_line(tried))

        climbed = climb_with(
            **layers,
            cases=arguments.cases,
            seed=arguments.seed,
            time_limit=arguments.time_limit,
            on_start=lambda rung: status.update(rung),
            on_end=show,
        )
    from .report import terminal as report

    console.print(report.climb_end(climbed))
    if arguments.json:
        print(json.dumps(climbed.as_json(), indent=2))
    if arguments.html:
        report.write_html(climbed, arguments.html)
        console.print(f"\nWritten: {arguments.html}", soft_wrap=True)
    return 0 if climbed.passed else 1


def ladder(argv: list[str]) -> int:
    """Run ``gptladder ladder``; the exit status is 0 where every rung holds."""
    arguments = parse(LadderArguments, argv, prog="gptladder ladder")
    _at_least_one(arguments.cases)
    console = Console()
    with _progress(console, "loading the references") as say, _references():
        from .report.terminal import verdict_table
        from .rungs import RUNGS
        from .verdicts import judge_in_order

        verdicts = list(
            judge_in_order(
                RUNGS,
                number=arguments.cases,
                seed=arguments.seed,
                on_start=lambda rung, reference: say(f"{rung.name} against {reference.library}"),
            )
        )
    console.print()
    console.print(verdict_table(verdicts, f"The ladder: largest |Δ| over {arguments.cases} cases"))
    console.print()
    fallen = next((each.rung for each in verdicts if not each.passed), None)
    if fallen is None:
        console.print(f"[green]All {len(RUNGS)} rungs hold.[/]")
        return 0
    console.print(f"[bold red]Stopped at {fallen}.[/] Its own tests say more: make test-{fallen}")
    return 1


def parity(argv: list[str]) -> int:
    """Run ``gptladder parity``; the exit status is 0 where everything is equal."""
    arguments = parse(ParityArguments, argv, prog="gptladder parity")
    _at_least_one(arguments.cases)
    console = Console()
    with _progress(console, "loading the references") as say, _references():
        from .parity import run
        from .report import terminal as report

        found = run(name_or_folder=arguments.model, number=arguments.cases, seed=arguments.seed, say=say)
    console.print()
    console.print(report.verdict_table(found.layers, f"Layers: largest |Δ| over {arguments.cases} cases"))
    shape = found.shape
    title = f"Whole model, {shape.n_layers} layers of {shape.d_model}, weights: {found.weights}"
    console.print()
    console.print(report.whole_table(found.whole, title))
    console.print()
    console.print(report.round_trip_table(found.round_trips))
    console.print()
    report.write_json(found, arguments.out / "parity.json")
    report.draw(found, arguments.out / "parity.png")
    console.print(
        f"Written: {arguments.out / 'parity.json'}, {arguments.out / 'parity.png'}", highlight=False, soft_wrap=True
    )
    console.print("[green]Parity holds.[/]" if found.passed else "[bold red]Parity does not hold.[/]")
    return 0 if found.passed else 1


def _at_least_one(cases: int) -> None:
    if cases < 1:
        raise ValueError(f"--cases is {cases}; at least 1 is needed to judge by")


@contextmanager
def _progress(console: Console, first: str) -> Iterator[Callable[[str], None]]:
    """Show the step under way: a spinner in a terminal, a line for each step elsewhere."""
    if not console.is_terminal:
        print(first, flush=True)
        yield lambda step: print(step, flush=True)
        return
    with console.status(first) as status:
        yield lambda step: status.update(step)


@contextmanager
def _references() -> Iterator[None]:
    """Check that the references are installed, and keep their deprecation warnings out of the report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_extra("transformer_lens")
        import_extra("transformers")
        yield
