"""What the user's layer is asked, and what it replies: all that passes between its process and the ladder's."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..answers import Answer
from ..results import Fault
from ..rungs import UNANSWERED, Trial
from .trace import Trace


@dataclass(frozen=True)
class Request:
    """A trial, and how to run the layer on it.

    Args:
        trial: its expected answer is taken out: a layer must not see it.
        layout: which way to read the layer's parameters.
        look: record a trace; with ``gradients`` too, check derivatives that the user wrote.
        wide: compute in the trial's dtype even where the layer asks for a lower one.
        gradients: run the backward pass too.
        attach: lines, as ``file:line``, that must not cut the gradient.
        restore: names, such as ``self.cache``, that stand for what they did before the trial's earlier calls.
        sequence_first: the layer takes and gives [seq batch …].
        training: run it in training mode, without its dropout; one that draws random numbers then gives no answer.
    """

    trial: Trial
    layout: int = 0
    look: bool = False
    wide: bool = False
    gradients: bool = True
    attach: tuple[str, ...] = ()
    restore: tuple[str, ...] = ()
    sequence_first: bool = False
    training: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "trial", replace(self.trial, expected=UNANSWERED))


@dataclass(frozen=True)
class Reply:
    """A layer's reply to a request, or a file's that was read.

    Args:
        answer: None if there is a fault.
        asked: the fields of the configuration that it has read so far; the others make no difference to it.
        fixed: sizes that it has whatever it is built for, if its parameters fit no other.
        missing: TransformerLens's names of the parameters that it does not have.
        ways: of each way to read its parameters and to make a mask for it, the ``split``; see `Layout`.
        masks: of each way, how the mask is made.
        reading, oddity: label and oddity of the way that was used.
        mask: how the causal mask was made that it was given; empty if it was given none.
        precision: of 16 bits, if its constructor makes parameters in it: ``float16``, ``bfloat16``.
        passed: arguments that were given another value than the file's default: ``(value, default)``.
        notes: how it was called, if not in the plain way; of a file, what was left out or replaced.
        trace: if one was asked for.
        borrowed: what it takes ready-made from libraries.
        layers: of a file that was read, the classes that fit each rung, the best first.
    """

    answer: Answer | None = None
    fault: Fault | None = None
    asked: frozenset[str] = frozenset()
    fixed: Mapping[str, int] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    ways: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    reading: str = ""
    oddity: str = ""
    mask: str = ""
    precision: str = ""
    passed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trace: Trace = field(default_factory=Trace)
    borrowed: tuple[str, ...] = ()
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
