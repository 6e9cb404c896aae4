"""The command lines ``gptladder climb``, ``gptladder ladder`` and ``gptladder parity``."""

import ast
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from ..extras import import_extra
from ..options import parse
from .results import Hint, Tried
from .rungs import RUNGS

Layer = Annotated[str | None, tyro.conf.arg(metavar="FILE.py:NAME")]


@dataclass(frozen=True)
class ClimbArguments:
    """Try your own layers, in order; stop at the first that is wrong, and report what is wrong with it.

    Give a file (my_file.py, a notebook, package.module:CLASS), in which the layers are found; or say which class is
    which layer. A layer is a class, or an adapter (docs/your-layer.md). It runs in a process of its own, with your
    rights.
    """

    source: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[FILE]")] = ()
    """A file, a notebook or package.module, with :CLASS for one class of it."""
    embed: Layer = None
    """Tokens to vectors."""
    pos_embed: Layer = None
    """Tokens to the vectors of their positions."""
    layer_norm: Annotated[Layer, tyro.conf.arg(aliases=["--layernorm"])] = None
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
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """A value for what a constructor or configuration asks for and is not known; may be repeated."""
    hint: Hint = "what"
    """How much the report gives away: the line, what is wrong, or how to fix it too."""
    reference: Literal["gptladder", "transformer-lens"] = "gptladder"
    """Layers to judge by: our own, which the tests prove, or TransformerLens's (needs gptladder[reference])."""
    dtype: Literal["float16", "bfloat16"] | None = None
    """Try the layers at this precision too, where they may be a few times as far off as our own."""
    cases: int = 25
    """Random configurations for each layer."""
    seed: int = 0
    """Of the configurations and of every number in them."""
    time_limit: float = 10.0
    """Seconds that a layer has for one configuration."""
    verbose: bool = False
    """Show float64, gradient and float32 differences with their limits, not one number."""
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
    """Real weights for the whole-model part: a name on the hub or a folder (default: random ones)."""
    cases: int = 25
    """Random configurations for each layer and reference."""
    seed: int = 0
    """Of the configurations and of every number in them."""
    out: Path = Path("reports")
    """Folder for parity.json and parity.png."""


def climb(argv: list[str]) -> int:
    """Run ``gptladder climb``; the exit status is 0 if every layer is right."""
    arguments = parse(ClimbArguments, argv, prog="gptladder climb")
    _at_least_one(arguments.cases)
    layers = {name: getattr(arguments, name) for name in (each.name.replace("-", "_") for each in RUNGS)}
    console = Console(quiet=arguments.json, highlight=False)
    if arguments.reference == "transformer-lens":
        import_extra("transformer_lens")
    with console.status("reading the file") as status, warnings.catch_warnings(action="ignore"):
        from .candidate.source import CandidateError
        from .climbing import climb as climb_with
        from .report import html, terminal
        from .results import Climb

        # The cases are small, and the layer computes at the same time: threads of this process would wait in its way.
        torch.set_num_threads(1)
        # Each rung is shown as it begins and as it ends.
        shown: list[str] = []
        status.stop()  # its thread must not be at work while the file's process starts as a copy of this one

        def begin(rung: str) -> None:
            status.update(rung)
            status.start()

        def show(tried: Tried) -> None:
            if not shown:
                console.print(terminal.climb_head(arguments.verbose))
            shown.append(tried.rung)
            console.print(terminal.climb_line(tried, arguments.verbose))

        try:
            climbed = climb_with(
                *arguments.source,
                **layers,
                chosen=dict(map(_setting, arguments.set)),
                hint=arguments.hint,
                reference=arguments.reference,
                dtype=arguments.dtype,
                cases=arguments.cases,
                seed=arguments.seed,
                time_limit=arguments.time_limit,
                copy_process=arguments.reference == "gptladder",  # libraries may have started threads of their own
                on_start=begin,
                on_end=show,
            )
        except CandidateError as error:
            if not arguments.json:
                raise
            climbed = Climb(refused=str(error))
    # The report, in the forms that were asked for.
    if climbed.rungs:
        if beginning := terminal.climb_begin(climbed):
            console.print()
            console.print(beginning, end="")
        console.print(terminal.climb_end(climbed))
    if arguments.json:
        print(json.dumps(climbed.as_json(), indent=2))
    if arguments.html:
        html.write_html(climbed, arguments.html)
        console.print(f"\nWritten: {arguments.html}", soft_wrap=True)
    return 0 if climbed.passed else 1


def _setting(text: str) -> tuple[str, Any]:
    """Return the name and the value in ``NAME=VALUE``; a value that is no Python literal is text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--set {text} has no name: write --set NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def ladder(argv: list[str]) -> int:
    """Run ``gptladder ladder``; the exit status is 0 where every rung holds."""
    arguments = parse(LadderArguments, argv, prog="gptladder ladder")
    _at_least_one(arguments.cases)
    console = Console()
    with _progress(console, "loading the references") as say, _references():
        from .own_layers import judge_in_order
        from .report.tables import verdict_table

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
        from .report import picture
        from .report import tables as report

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
    picture.draw(found, arguments.out / "parity.png")
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
    with warnings.catch_warnings(action="ignore"):
        import_extra("transformer_lens")
        import_extra("transformers")
        yield
