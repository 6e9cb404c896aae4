"""The user's layer on its rung, wherever it runs: what it answers, what it reads, and how its parameters lie."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .answers import Answer, difference
from .candidate.fixed_sizes import d_mlp_that_follows
from .candidate.requests import Reply, Request
from .candidate.trace import Trace
from .cases import (
    Draw,
    drawing,
    has_one_head,
    in_any_block,
    with_other_input,
    without,
)
from .even_widths import needs_even_widths, of_even_widths
from .layout_choice import Asked, LayoutChoice
from .own_faults import OwnFault
from .results import Fault
from .rungs import Case, Rung, Trial, altered, make_trial

# Answers requests of one rung, in order.
Ask = Callable[[Iterable[Request]], Iterator[Reply]]
# After these, another case would cost a new process.
FATAL = ("hang", "died", "limit")
# Parameters that GPT-2 does not have, or has only once.
OPTIONAL = ("b_U", "unembed.b_U", "unembed.W_U")
# Rungs whose layers take numbers from other positions; a change that is no rounding; and how far off is still right.
_MIXING = ("attention", "block", "model")
_SEEN, _RIGHT = 1e-6, 1e-4


class UnderTest:
    """A layer on its rung, and what is known of it so far.

    Args:
        rung: the rung.
        ask: the layer.
        library: whose layers to judge by; our own if None.
        seed: of every case.
        draw: draws cases that the layer can be built for (default: those of a layer that reads nothing; `begin` finds
            out more). Of a case it draws, the diagnosis may also try ``act_fn="gelu_new"``,
            ``scale_attn_weights=True``, and other sizes; if all that it draws have ``d_model = n_heads * d_head``, so
            will those.
    """

    def __init__(
        self,
        rung: Rung,
        ask: Ask,
        library: str | None = None,
        seed: int = 0,
        draw: Draw | None = None,
    ) -> None:
        self.rung, self._ask, self._library, self.seed = rung, ask, library, seed
        self.missing: frozenset[str] = frozenset()  # parameters that it does not have; they are 0 in every trial
        self.layout, self.dead, self.wide, self.sequence_first = 0, False, False, False
        self.fixed: Mapping[str, int] = {}  # sizes that it has in any case
        self.widened = ""  # why steps of it were widened to float64
        self.even = False  # it can be built and run for even widths only
        self.first = Reply()
        self.draw = draw or drawing(frozenset(), frozenset())

    @property
    def asked(self) -> frozenset[str]:
        """The fields of the configuration that it read when it was first built."""
        return self.first.asked

    @property
    def reference(self) -> str:
        """The name of the reference."""
        return "gptladder" if self._by_ours else self._theirs.library

    @property
    def _by_ours(self) -> bool:
        return self._library is None or bool(self.missing - set(OPTIONAL))

    @property
    def _theirs(self) -> Any:
        lens, hf = self.rung.references
        return hf if self.missing else lens

    # ---- asking ----

    def ask(self, trial: Trial, **how: Any) -> Reply:
        """Ask for the layer's answer to a trial. ``how`` are fields of a `Request`."""
        return next(self._replies([(trial, how)]), Reply())

    def ask_each(self, trials: Iterable[Trial], **how: Any) -> Iterator[tuple[Trial, Reply]]:
        """Ask for the layer's answers to trials. It may work on one while the next is made."""
        asked: deque[Trial] = deque()

        def questions() -> Iterator[Asked]:
            for trial in trials:
                asked.append(trial)
                yield trial, how

        for reply in self._replies(questions()):
            yield asked.popleft(), reply

    def _replies(self, asked: Iterable[Asked]) -> Iterator[Reply]:
        """Yield the layer's replies. Nothing more is asked of a layer that hung or died."""
        if self.dead:
            return
        for reply in self._ask(self._request(trial, **how) for trial, how in asked):
            if reply.fault is not None and reply.fault.kind == "internal":
                raise OwnFault(reply.fault.message)
            self.dead = reply.fault is not None and reply.fault.kind in FATAL
            yield reply
            if self.dead:
                return

    def _request(self, trial: Trial, *, wide: bool = False, **how: Any) -> Request:
        widened = self.wide and (trial.dtype == torch.float64 or bool(self.first.precision))
        own = {"layout": self.layout, "wide": wide or widened, "sequence_first": self.sequence_first}
        return Request(trial, **own | how)

    def answer(self, trial: Trial, **how: Any) -> Answer | None:
        """Return the layer's answer, with no gradient of what it does not have; None if it gives none."""
        answer = self.ask(trial, **how).answer
        return None if answer is None else without(answer, self.missing)

    def trace(self, trial: Trial, **how: Any) -> Trace:
        """Return what the layer computes on a trial, as far as that can be recorded."""
        return self.ask(trial, **{"look": True, "gradients": False, **how}).trace

    def trial(self, case: Case, dtype: torch.dtype = torch.float64, *, gradients: bool = True) -> Trial:
        """Return the trial of a case, judged by the reference."""
        if self._by_ours:
            return self.own_trial(case, dtype, gradients=gradients)
        return self.fair(make_trial(self.rung, self._theirs, case, dtype, gradients=gradients))

    def own_trial(self, case: Case, dtype: torch.dtype = torch.float64, *, gradients: bool = True) -> Trial:
        """Return the trial of a case, judged by our own layer."""
        trial = make_trial(self.rung, self.rung.own, case, dtype, gradients=gradients)
        lacking: dict[str, Tensor | float] = {
            name: _same(each) if name.endswith("W_O") else float(name.rpartition(".")[2] == "w")
            for name, each in trial.parameters.items()
            if in_any_block(name) in self.missing
        }
        return self.fair(altered(trial, given=None, **lacking) if lacking else trial)

    def fair(self, trial: Trial) -> Trial:
        """Return the trial with no gradient expected of a parameter that the layer does not have."""
        return replace(trial, expected=without(trial.expected, self.missing))

    def new_case(self, **sizes: int) -> Case:
        """Return the first case of the seed, with some sizes of its own."""
        return replace(self.draw(random.Random(self.seed)), **sizes)

    def off(self, trial: Trial, limit: float, **how: Any) -> tuple[Fault | None, float]:
        """Return the fault, if there is one, and how far the output is off; 0 if that is within the limit."""
        reply = self.ask(trial, gradients=False, **how)
        if reply.answer is None:
            return reply.fault, float("inf")
        off = difference(reply.answer.output, trial.expected.output)
        return None, off if off > limit else 0.0

    # ---- what it reads ----

    def begin(self) -> None:
        """Find out what the layer reads and lacks, the order of its axes, and how its parameters lie."""
        self._read()
        self._find_even_widths("build")
        if self.rung.name in _MIXING and self._is_sequence_first():
            self.sequence_first = True
            self._read()
        self._settle()
        if self._find_even_widths("raises"):
            self._settle()
        # A model's positions show which axis is the sequence: it may attend along the batch by mistake.
        if self.sequence_first and self.rung.name == "model" and self._is_wrong():
            self.sequence_first = False
            self._read()
            self._settle()

    def _read(self) -> None:
        case = self.new_case()
        first = self.first = self.ask(self.trial(case))
        self.fixed = first.fixed
        if has_one_head(self.asked) or self.fixed:
            self.draw = self._drawing(self.asked, frozenset())
            self.first = self.ask(self.trial(self.new_case()))
        if self.fixed and (follows := _follows(self, case, first)):
            self.first, self.fixed = replace(first, fixed={}, fault=follows), {}
        self.missing = frozenset(map(in_any_block, self.first.missing))
        self.draw = self._drawing(self.asked, self.missing)

    def _drawing(self, asked: frozenset[str], missing: frozenset[str]) -> Draw:
        draw = drawing(asked, missing, self.fixed)
        return of_even_widths(draw) if self.even else draw

    def _find_even_widths(self, kind: str) -> bool:
        """Find out whether the layer has faults of a kind for odd widths alone; it is judged with even ones then."""

        def raises(case: Case) -> bool:
            fault = self.ask(self.trial(case, gradients=False), gradients=False).fault
            return fault is not None and fault.kind == kind

        if self.even or not needs_even_widths(self.draw, self.seed, raises):
            return False
        self.even = True
        self._read()
        return True

    def _settle(self) -> None:
        if self.first.fault and self.first.fault.kind in ("raises", "dtype"):
            self._try_float32(self.first.fault)
        if len(self.first.ways) > 1:
            self._choose_layout()

    def _is_wrong(self) -> bool:
        fault, off = self.off(self.trial(self._with_heads(), gradients=False), _RIGHT)
        return fault is not None or bool(off)

    def _is_sequence_first(self) -> bool:
        """Return whether the layer takes [seq batch …]: it then mixes along the first axis, and not the second."""
        fault = self.first.fault
        if fault is not None and fault.kind not in ("raises", "dtype"):
            return False
        case = replace(self._with_heads(), batch=2)
        plain = self._mixes(case, sequence_first=False)
        if plain is None:  # a mask of the other length, say
            return self._mixes(case, sequence_first=True) == (False, True)
        return plain == (True, False)

    def _mixes(self, case: Case, *, sequence_first: bool) -> tuple[bool, bool] | None:
        """Return whether a change at one place is seen in other sequences, and at other positions of its own."""
        trial, how = self.trial(case, gradients=False), {"gradients": False, "sequence_first": sequence_first}
        inputs = trial.given, with_other_input(trial, (0, 0))
        answers = [self.answer(replace(trial, given=given), **how, wide=True) for given in inputs]
        if answers[0] is None or answers[1] is None:
            return None
        changed = (answers[0].output - answers[1].output).abs().amax(-1) > _SEEN
        return bool(changed[1:].any()), bool(changed[0, 1:].any())

    def leave_out(self, name: str) -> None:
        """Vary a field of the configuration no more: it makes no difference to the layer, though it was read."""
        self.first = replace(self.first, asked=self.first.asked - {name})
        self.draw = self._drawing(self.asked, self.missing)

    def _try_float32(self, fault: Fault) -> None:
        """Find out whether the layer fails in float64 only because a step of it is in a lower precision in any case."""
        exact, plain = (self.trial(self.new_case(), dtype) for dtype in (torch.float64, torch.float32))
        low = self.first.precision
        if self.ask(exact, wide=True).answer is None or not (low or self.ask(plain).answer is not None):
            return
        self.wide = True
        if low:
            self.widened = f"it computes in {low}; its steps were widened to judge its formula"
        else:
            at = f" at {fault.at}: {fault.code}" if fault.at else ""
            self.widened = f"in float64 {fault.message}{at}; its float32 steps were widened to judge it"
        self.first = replace(self.first, fault=None)

    def _choose_layout(self) -> None:
        """Choose the way to read the parameters under which the layer is right; if there is none, the likeliest."""
        trial = self.trial(self._with_heads(), gradients=False)
        self.layout, self.first = LayoutChoice(self.first, trial, self._replies).choose()

    def _with_heads(self) -> Case:
        """Return a case with several heads and positions: of fewer, different layers give the same answer."""
        source = random.Random(self.seed)
        one = has_one_head(self.asked) or self.fixed.get("n_heads") == 1
        draw = self._drawing(self.asked if one else frozenset(), self.missing)
        cases = (draw(source) for _ in range(100))
        return next(case for case in cases if (one or case.config.n_heads > 1) and case.seq > 2)

    # ---- what to know of it ----

    @property
    def reading(self) -> str:
        """How its parameters were read, in a line; empty if they have TransformerLens's names."""
        plain = ("by TransformerLens's names", "by the adapter")
        return "" if self.first.reading in plain else self.first.reading

    @property
    def notes(self) -> list[str]:
        """What to know of how the layer was built, read and called, as clauses."""
        return _notes(self)


def _follows(layer: UnderTest, case: Case, first: Reply) -> Fault | None:
    """Return the fault of a layer whose own sizes in one case follow the model's width; None if they do not.

    Args:
        first: the reply in that case.
    """
    source = random.Random(layer.seed)
    drawn = (layer.draw(source) for _ in range(100))
    other = next(each for each in drawn if each.config.d_model != case.config.d_model)
    again = layer.ask(layer.trial(other))
    if first.fault is None or again.fault is None or again.fault.kind != "parameters":
        return None
    words = d_mlp_that_follows(layer.fixed, again.fixed, (case.config.d_model, other.config.d_model))
    return replace(first.fault, message=f"{first.fault.message.partition(': ')[0]}: {words}") if words else first.fault


def _notes(layer: UnderTest) -> list[str]:
    notes = list(layer.first.notes)
    if layer.first.oddity:
        notes.append(f"GPT-2's weights do not fit as they are stored: {layer.first.oddity}")
    if "unembed.W_U" in layer.missing:
        if layer.first.fault is None or layer.first.fault.kind != "shape":  # otherwise it may make no logits
            notes.append("it has no W_U of its own; GPT-2's logits are tied to W_E")
    elif layer.missing & {"b_U", "unembed.b_U"}:
        notes.append("it has no b_U, as GPT-2 has none")
    if layer.fixed:
        sizes = ", ".join(f"{name}={size}" for name, size in layer.fixed.items())
        notes.append(f"it has {sizes} whatever it is built for, and was judged with that")
    if layer.even:
        notes.append("it raises where d_model or d_head is odd, and was judged with even ones")
    if has_one_head(layer.asked):
        notes.append("it reads no number of heads, and was judged as one head")
    if layer.sequence_first:
        order = "[seq batch]" if layer.rung.takes_tokens else "[seq batch d_model]"
        notes.append(
            f"forward takes {order}, and was judged in that order; the sequence comes second in GPT-2: "
            f"{order.replace('seq batch', 'batch seq')}"
        )
    for name, (value, default) in layer.first.passed.items():
        other = "eps" in name.lower() and default != _GPT2_EPS
        wrong = f", and GPT-2's is {_GPT2_EPS!r}: built without {name}, it is wrong" if other else ""
        notes.append(f"it was built with {name}={value!r}; the file's own default is {default!r}{wrong}")
    return notes


_GPT2_EPS = 1e-5


def _same(out: Tensor) -> Tensor:
    """Return the output projection that changes nothing."""
    return torch.eye(out.shape[-1], dtype=out.dtype).view_as(out)


def as_sentence(clause: str) -> str:
    """Return a clause with a capital letter and a full stop."""
    return clause[:1].upper() + clause[1:].removesuffix(".") + "."
