"""Find the mistakes of the catalogue that give exactly a layer's answers."""

import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor

from ...components.shapes import typecheck
from ..answers import Answer, close, same
from ..candidate.trace import Trace
from ..cases import without
from ..mistakes import INSIDE, MISTAKES, Mistake
from ..mistakes.measured import measured_eps, measured_fills
from ..mistakes.mistake import placed, with_steps
from ..mistakes.wiring import with_parts
from ..results import Diagnosis, listed
from ..rungs import Build, Rung, Trial, answer

# Mistakes that explain a layer's answers, as a diagnosis, and a layer that makes them.
Named = tuple[Diagnosis, Build]


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
        parts: the layers inside it that are wrong by themselves, with their own trial and output.
        measured: mistakes with numbers that were measured on the layer.
        trace: of the layer, on the trial of its parts.
    """

    def __init__(
        self,
        rung: Rung,
        missing: frozenset[str],
        answered: Sequence[tuple[Trial, Answer]],
        parts: list[tuple[str, Trial, Tensor]],
        measured: Sequence[Mistake] = (),
        trace: Trace | None = None,
    ) -> None:
        self.trace = trace
        self.rung, self.missing, self.answered, self.parts = rung, missing, answered, parts
        self.strict = True
        self.own = [mistake for mistake in MISTAKES if mistake.rung == rung.name]
        self.measured = list(measured)
        if rung.name == "layer-norm":
            every = (measured_eps(trial, found.output) for trial, found in answered)
            self.measured += next(filter(None, every), [])

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
                # A parameter that is read without effect has a gradient of zeros, and so has one that is never read.
                self.strict = False
                found = self._one(self.own)
            return found

    def _reproduces(self, build: Build) -> bool:
        """Return whether a wrong layer gives the layer's very answers."""
        # Most have another output on the first trial: that is seen without their gradients, which take longer.
        for trial, found in self.answered[:1]:
            if not close(answer(build(trial.config, trial.dtype), trial, gradients=False).output, found.output):
                return False
        for trial, found in self.answered:
            made = without(answer(build(trial.config, trial.dtype), trial), self.missing)
            read = not self.strict or made.gradients.keys() == found.gradients.keys()
            if not (read and same(made, found)):
                return False
        return True

    def _one(self, mistakes: Sequence[Mistake]) -> Named | None:
        fitting = [(each, build) for each in mistakes for build in each.builds if self._reproduces(build)]
        if not fitting:
            return None
        mistakes = list(dict.fromkeys(each for each, _ in fitting))
        return _named(mistakes, fitting[0][1], either=len(mistakes) > 1)

    def _two(self) -> Named | None:
        """Return two mistakes that are made together."""
        for one, other in itertools.combinations([*self.own, *self.measured], 2):
            for first, second in itertools.product(one.spellings, other.spellings):
                if first.keys().isdisjoint(second) and self._reproduces(
                    build := with_steps(one.base, {**first, **second})
                ):
                    return _named([one, other], build)
        return None

    def _in_parts(self) -> Named | None:
        """Return the mistakes of the layers inside, each found by itself, if together they explain the answers."""
        if not self.parts:
            return None
        # A part that contains a wrong part is wrong for that reason, or wired wrongly as well.
        inner = [part for part in self.parts if not any(other[0].startswith(f"{part[0]}.") for other in self.parts)]
        options = [list(self._of_part(trial, output)) for _, trial, output in inner]
        if not all(options):
            return None
        base = self.own[0].base
        # Layers of one class make one mistake, where two would do as well.
        every = itertools.islice(itertools.product(*options), 100)
        likeliest = sorted(every, key=lambda chosen: len({each.name for each, _ in chosen}))[:20]
        for wiring in (None, *self.own):
            for spelling in wiring.spellings if wiring else ({},):
                for chosen in likeliest:
                    builds = {path: build for (path, _, _), (_, build) in zip(inner, chosen, strict=True)}
                    if self._reproduces(build := with_parts(base, builds, spelling)):
                        found = [(path, each) for (path, _, _), (each, _) in zip(inner, chosen, strict=True)]
                        layers = self.parts[0][1].config.n_layers
                        return _named([*([wiring] if wiring else []), *_grouped(found, layers)], build)
        return None

    def _of_part(self, trial: Trial, output: Tensor) -> Iterator[tuple[Mistake, Build]]:
        """Yield the mistakes that give a part's own output."""
        own = output.to(trial.dtype)
        catalogued = (each for each in MISTAKES if each.rung == trial.rung)
        measured = measured_eps(trial, own) if trial.rung == "layer-norm" else []
        if trial.rung == "attention" and self.trace is not None:
            measured = measured_fills(trial, self.trace)
        for mistakes in (catalogued, measured):
            found = False
            for each, build in ((mistake, build) for mistake in mistakes for build in mistake.builds):
                if close(answer(build(trial.config, trial.dtype), trial, gradients=False).output, own):
                    found = True
                    yield each, build
            if found:
                return


_PLACES = {"attn": "the block's attention", "mlp": "the block's MLP", "ln1": "ln1", "ln2": "ln2"}


def _grouped(found: Sequence[tuple[str, Mistake]], layers: int) -> list[Mistake]:
    """Return mistakes inside a layer of so many blocks with their places, once for what several do alike."""
    places: dict[str, list[str]] = {}
    mistakes = {each.name: each for _, each in found}
    for path, each in found:
        places.setdefault(each.name, []).append(path)
    named = []
    for name, paths in places.items():
        where = place_of(paths, layers)
        named.append(placed(mistakes[name], where))
    return named


def place_of(paths: Sequence[str], layers: int) -> str:
    """Return in words where the layers of these paths are, in a layer of so many blocks."""
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
    return f"{whose}'s {what}" if len(blocks) in (1, layers) else f"{what} of {whose}"


def _of_block(path: str) -> str:
    """Return which layer a path leads to: ``blocks.0.ln1`` is ln1 of block 0."""
    before, _, last = path.rpartition(".")
    block = before.rpartition(".")[2]
    if last.isdigit():
        return f"block {last}"
    what = {"attn": "attention", "mlp": "the MLP"}.get(last, last)
    return f"{what} of block {block}" if block.isdigit() else _PLACES.get(last, last)
