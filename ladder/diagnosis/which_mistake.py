"""Find the mistakes of the catalogue that give exactly a layer's answers."""

import itertools
from collections.abc import Collection, Iterator, Sequence

from torch import Tensor, nn

from ...components.shapes import typecheck
from ..answers import Answer, same
from ..candidate.trace import Trace
from ..cases import without
from ..mistakes import FINITE_MASKS, INSIDE, MISTAKES, Mistake
from ..mistakes.fast_outputs import FastOutputs
from ..mistakes.measured import measured_eps, measured_fills
from ..mistakes.mistake import Steps, placed, together, with_steps
from ..mistakes.parts import Parts, no_parts
from ..results import Diagnosis, listed
from ..rungs import Build, Rung, Trial, answer
from .wrong_parts import wrong_parts

# Mistakes that explain a layer's answers, as a diagnosis, and a layer that makes them.
Named = tuple[Diagnosis, Build]
# A layer inside another that is wrong by itself: its name, its own trial, and its output.
Part = tuple[str, Trial, Tensor]
# Mistakes that give a part's output when they are made together, and the part that makes them.
Made = tuple[tuple[Mistake, ...], Build]
# Mistakes that are made together, and the steps of all.
Wrong = tuple[tuple[Mistake, ...], Steps]


def _named(mistakes: Sequence[Mistake], build: Build, either: bool = False) -> Named:
    """Return the diagnosis of mistakes that are made together; or of any ``either`` of which gives the answers."""
    names = tuple(each.name for each in mistakes)
    what = tuple(each.what for each in mistakes)
    if either:
        names, what = (" or ".join(names),), ("Either of these gives the layer's answers.", *what)
    fix = tuple(each.fix for each in mistakes if each.fix)
    return Diagnosis(mistakes=names, what=what, fix=fix), build


class MistakeSearch:
    """Looks for the mistakes of the catalogue that give a layer's very answers.

    Args:
        rung: the layer's.
        missing: parameters that it does not have.
        answered: trials with its answers.
        recorded: the trial that the trace was recorded on.
        trace: what the layer computes there.
    """

    def __init__(
        self,
        rung: Rung,
        missing: frozenset[str],
        answered: Sequence[tuple[Trial, Answer]],
        recorded: Trial,
        trace: Trace,
    ) -> None:
        self.rung, self.missing, self.answered, self.trace = rung, missing, answered, trace
        # The layers inside it that are wrong by themselves.
        self.parts: list[Part] = wrong_parts(recorded, trace)
        self.strict = True
        self.first = FastOutputs(answered[0][0], answered[0][1].output)
        self.own = [mistake for mistake in MISTAKES if mistake.rung == rung.name]
        self.measured: list[Mistake] = []
        if rung.name == "attention":
            self.measured = measured_fills(recorded, trace)
        elif rung.name == "layer-norm":
            every = (measured_eps(trial, found.output) for trial, found in answered)
            self.measured = next(filter(None, every), [])
        # The embeddings of a model are not among its wrong parts: a trace does not show what they are given.
        tables = {each.name for each in MISTAKES if each.rung in ("embed", "pos-embed")}
        self.embedding = [each for each in INSIDE.get(rung.name, ()) if each.name in tables]

    def named(self) -> Named | None:
        """Return the mistakes; None if the catalogue does not explain the answers."""
        with typecheck(False):  # every one is a new layer, whose shapes would be checked anew
            found = (
                self._one(self.own)
                or self._one(self.measured)
                or self._in_parts()
                or (self._one(INSIDE.get(self.rung.name, ())) if not self.parts else None)
                or self._two()
            )
            if found is None:
                # What is read without effect has a gradient of rounding, and what is never read has none.
                self.strict = False
                found = self._one(self.own)
            return found

    def _reproduces(self, base: type[nn.Module], steps: Steps) -> bool:
        """Return whether a wrong layer gives the layer's very answers."""
        # Most have another output on the first trial: that is seen without their gradients, which take longer.
        if not self.first.gives(base, steps):
            return False
        build = with_steps(base, steps)
        for trial, found in self.answered:
            made = without(answer(build(trial.config, trial.dtype), trial), self.missing)
            read = not self.strict or _read(made) == _read(found)
            if not (read and same(made, found)):
                return False
        return True

    def _one(self, mistakes: Sequence[Mistake]) -> Named | None:
        """Return the mistake that gives the answers."""
        fitting = [(each, steps) for each in mistakes for steps in each.spellings if self._reproduces(each.base, steps)]
        if not fitting:
            return None
        mistakes = list(dict.fromkeys(each for each, _ in fitting))
        first, steps = fitting[0]
        return _named(mistakes, with_steps(first.base, steps), either=len(mistakes) > 1)

    def _two(self) -> Named | None:
        """Return two mistakes that are made together."""
        for one, other, steps in _pairs([*self.own, *self.measured, *self.embedding]):
            if self._reproduces(one.base, steps):
                return _named([one, other], with_steps(one.base, steps))
        return None

    def _in_parts(self) -> Named | None:
        """Return the mistakes of the layers inside, each found by itself, if together they explain the answers."""
        if not self.parts:
            return None
        # A part that contains a wrong part is wrong for that reason, or wired wrongly as well.
        inner = [part for part in self.parts if not any(other[0].startswith(f"{part[0]}.") for other in self.parts)]
        options = self._of_parts(inner)
        if options is None:
            return None
        base, layers = self.own[0].base, self.parts[0][1].config.n_layers
        # Layers of one class make one mistake, where two would do as well.
        every = itertools.islice(itertools.product(*options), 100)
        likeliest = sorted(every, key=lambda chosen: len({each.name for made, _ in chosen for each in made}))[:20]
        for wiring in (None, *self.own, *self.embedding):
            for spelling in wiring.spellings if wiring else ({},):
                for chosen in likeliest:
                    builds = {path: build for (path, _, _), (_, build) in zip(inner, chosen, strict=True)}
                    if self._reproduces(base, steps := _with_parts(spelling, builds)):
                        found = [
                            (path, each) for (path, _, _), (made, _) in zip(inner, chosen, strict=True) for each in made
                        ]
                        wired = [wiring] if wiring else []
                        grouped = _grouped(found, layers, self._compared_blocks())
                        return _named([*wired, *grouped], with_steps(base, steps))
        return None

    def _compared_blocks(self) -> set[int]:
        """Return the blocks that ran on finite numbers: NaN shows no mistake of those that are given it."""
        names = [part for part, given, _ in self.trace.parts if part.startswith("blocks.") and given.isfinite().all()]
        return {int(name.split(".")[1]) for name in names}

    def _of_parts(self, parts: Sequence[Part]) -> list[list[Made]] | None:
        """Return for each part the mistakes that give its own output; None if there are none for one of them."""
        options: list[list[Made]] = []
        pairs: dict[str, list[Wrong]] = {}  # of the parts so far, by their rung: other parts make the same ones
        for _, trial, output in parts:
            outputs = FastOutputs(trial, output)
            own = [each for each in MISTAKES if each.rung == trial.rung]
            made = _singles(outputs, own)
            if not made and trial.rung == "layer-norm":
                made = _singles(outputs, measured_eps(trial, outputs.output))
            if not made and trial.rung == "attention":
                made = _singles(outputs, measured_fills(trial, self.trace))
            if not made and trial.rung in pairs:
                made = [each for each in pairs[trial.rung] if outputs.gives(own[0].base, each[1])]
            elif not made:
                made = [((one, two), s) for one, two, s in _pairs(own) if outputs.gives(one.base, s)]
                pairs[trial.rung] = made
            if not made:
                return None
            options.append([(each, with_steps(own[0].base, steps)) for each, steps in made])
        return options


def _read(answer: Answer) -> set[str]:
    """Return the parameters that an answer depends on: of one tensor for several, some may have gradients of zeros."""
    return {name for name, gradient in answer.gradients.items() if bool(gradient.any())}


def _singles(outputs: FastOutputs, mistakes: Sequence[Mistake]) -> list[Wrong]:
    """Return the mistakes that give the output by themselves."""
    return [((each,), steps) for each in mistakes for steps in each.spellings if outputs.gives(each.base, steps)]


def named_by_output(rung: Rung, trial: Trial, output: Tensor) -> Diagnosis | None:
    """Return which mask gives a layer's output, if the layer is right for small scores and wrong for large ones."""
    outputs = FastOutputs(trial, output)
    with typecheck(False):
        for each in FINITE_MASKS.get(rung.name, ()):
            if _singles(outputs, [each]):
                return _named([each], each.build)[0]
    return None


def _pairs(mistakes: Sequence[Mistake]) -> Iterator[tuple[Mistake, Mistake, Steps]]:
    """Yield two mistakes and the steps of both, if they can be made together, and are not rare."""
    for one, other in itertools.combinations([each for each in mistakes if not each.rare], 2):
        for first, second in itertools.product(one.spellings, other.spellings):
            if (steps := together(first, second)) is not None:
                yield one, other, steps


def _with_parts(steps: Steps, builds: Parts) -> Steps:
    """Return the steps of a mistake with wrong layers in some places beside those that it puts in itself."""
    own = steps.get("parts", no_parts)
    return {**steps, "parts": lambda layer, config: {**own(layer, config), **builds}}


_PLACES = {"attn": "the block's attention", "mlp": "the block's MLP", "ln1": "ln1", "ln2": "ln2"}


def _grouped(found: Sequence[tuple[str, Mistake]], layers: int, compared: Collection[int]) -> list[Mistake]:
    """Return mistakes inside a layer of so many blocks with their places, once for what several do alike."""
    places: dict[str, list[str]] = {}
    mistakes = {each.name: each for _, each in found}
    for path, each in found:
        places.setdefault(each.name, []).append(path)
    named = []
    for name, paths in places.items():
        where = place_of(paths, layers, compared)
        named.append(placed(mistakes[name], where))
    return named


def place_of(paths: Sequence[str], layers: int, compared: Collection[int] = ()) -> str:
    """Return in words where the layers of these paths are, in a layer of so many blocks.

    Args:
        compared: the blocks that were compared, if others do not run, or run on NaN: nothing is known of those.
    """
    lasts = {"block" if each.rpartition(".")[2].isdigit() else each.rpartition(".")[2] for each in paths}
    blocks = sorted({int(path.split(".")[1]) for path in paths if path.startswith("blocks.")})
    if lasts == {"ln1", "ln2"} and not blocks:
        return "both layer norms"
    if len(blocks) == layers and len(paths) == 2 * layers + ("ln_final" in lasts):
        if lasts == {"ln1", "ln2", "ln_final"}:
            return "every layer norm"
        if lasts == {"ln1", "ln2"}:
            return "every block's layer norms"
    if not blocks or len(lasts) > 1:
        return listed([_of_block(path) for path in sorted(paths)])
    some = f"block{'s' * (len(blocks) > 1)} {listed([str(each) for each in blocks])}"
    whose = "every block" if len(blocks) == layers else some
    last = next(iter(lasts))
    if last == "block":
        return whose
    what = {"attn": "attention", "mlp": "MLP"}.get(last, last)
    if set(blocks) == set(compared) and len(blocks) < layers:
        return what
    return f"{whose}'s {what}" if len(blocks) in (1, layers) else f"{what} of {whose}"


def _of_block(path: str) -> str:
    """Return which layer a path leads to: ``blocks.0.ln1`` is ln1 of block 0."""
    before, _, last = path.rpartition(".")
    block = before.rpartition(".")[2]
    if last.isdigit():
        return f"block {last}"
    what = {"attn": "attention", "mlp": "the MLP"}.get(last, last)
    return f"{what} of block {block}" if block.isdigit() else _PLACES.get(last, last)
