"""What was found out about a layer: its fault, where it departs from GPT-2, which mistake it makes; in words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Hint = Literal["where", "what", "fix"]

# A line of a report: its kind and text. A ``mistake``'s name, a sentence (``text``), the place of a fault (``code``) or
# of a finding (``look``), a ``listing``, or something ``small``.
Line = tuple[str, str]
_BEFORE = {"code": "  ", "look": "Look at "}


# How to fix a fault, by its kind.
_FIXES = {
    "half": "Compute it in the dtype of what forward is given.",
    "random": "Switch it off in eval mode: nn.Dropout in __init__ does that by itself, F.dropout needs self.training.",
    "state": "Make anew in each call what depends on the input, such as a mask of its length.",
    "input": "Make a new tensor: x = x + y and not x += y, or work on x.clone().",
    "biases": "Add them: bias=True in nn.Linear makes one.",
}


def as_text(lines: Iterable[Line]) -> str:
    """Return lines of a report as plain text.

    Example:
        >>> as_text([("text", "It is wrong."), ("code", "mine.py:3: x")])
        'It is wrong.\\n  mine.py:3: x'
    """
    return "\n".join(_BEFORE.get(kind, "") + text for kind, text in lines)


@dataclass(frozen=True)
class Fault:
    """What is wrong with a layer.

    Args:
        kind: of a layer that gives no answer ``build``, ``parameters``, ``raises``, ``exit``, ``type``, ``shape``,
            ``dtype``, ``input``, ``hang`` or ``died``; ``unlearned`` (it has no parameters, and GPT-2's has); of one
            that gives one ``nan``, ``some nan``, ``output``, ``half`` (computed in 16 bits), ``random``, ``state``
            (wrong after another call), ``context`` (at n_ctx), ``large`` (for large scores), ``training`` (in training
            mode), ``low`` (in float16 or bfloat16 alone), ``missing`` (a gradient), ``gradient``, ``float32`` (alone),
            ``biases`` (GPT-2's are missing, all else is right); ``refused`` of one that cannot be tried, and
            ``internal`` if that is a fault of gptladder's own.
        message: what happened, as a sentence without its full stop.
        at: ``file:line`` in the user's source, if it is known.
        code: that line.
        listing: for ``parameters``: GPT-2's beside those that the layer has.
        names: for ``build`` and ``missing``: the names that it is about.
    """

    kind: str
    message: str
    at: str | None = None
    code: str | None = None
    listing: str = ""
    names: tuple[str, ...] = ()

    @property
    def fix(self) -> str:
        """How to fix it, in a sentence; empty if that follows from what is wrong, or depends on it."""
        dropout = self.kind == "random" and self.code is not None and "ropout" in self.code
        return _FIXES.get(self.kind, "") if self.kind != "random" or dropout else ""

    @property
    def lines(self) -> list[Line]:
        """The fault in words."""
        lines: list[Line] = [("text", f"{self.message.removesuffix('.')}.")]
        lines += [("code", f"{self.at}: {self.code}")] if self.at else []
        return lines + ([("listing", self.listing)] if self.listing else [])

    def __str__(self) -> str:
        return as_text(self.lines)


@dataclass(frozen=True)
class Finding:
    """Where a layer first departs from GPT-2.

    Args:
        at: ``file:line`` in the user's source; None if the line is not known.
        code: that line.
        right: the last quantities that are right, with their lines: ``the queries (line 37)``.
        wrong: the quantity that is wrong there, or what the line gives instead; empty if all is right before an error.
        detail: how it is wrong, in sentences; each was checked.
        fix: what to write in its place, in a sentence; empty if that is not known.
    """

    at: str | None
    code: str | None
    right: tuple[str, ...]
    wrong: str
    detail: tuple[str, ...] = ()
    fix: str = ""

    def lines(self, hint: Hint) -> list[Line]:
        """The finding in words."""
        lines: list[Line] = [("look", f"{self.at}: {self.code}")] if self.at else []
        right = f"Right up to there: {listed(self.right)}." if self.right and (self.at or not self.wrong) else ""
        # A line and GPT-2's step in one bracket, not in two.
        wrong = re.sub(r"(\(line \d+)\) \(GPT-2 ", r"\1; GPT-2 ", f"First wrong: {self.wrong}.") if self.wrong else ""
        lines.append(("text", " ".join(filter(None, (right, wrong)))))
        return lines + [("text", each) for each in self.detail if hint != "where"]


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a wrong layer after it was tried on cases chosen to tell mistakes apart.

    Args:
        mistakes: the catalogued mistakes that give its very answers, output and gradients: one, as a rule; two that it
            makes together; none.
        what: what is wrong, a sentence or two for each mistake.
        fix: how to fix it, likewise.
        finding: where it first departs from GPT-2.
        facts: what else was observed: a gradient that reaches no parameter, a wrong row of a table.
        smallest: the sizes of a small case that it still fails.
        sizes: of the case that the finding and the facts are of.
        others: the mistakes do not explain the answers: the layer makes others, which are not catalogued.
        patterns: of attention on one trial: the right weights ``[n_heads query_pos key_pos]`` and the layer's own, by
            whose they are.
    """

    mistakes: tuple[str, ...] = ()
    what: tuple[str, ...] = ()
    fix: tuple[str, ...] = ()
    finding: Finding | None = None
    facts: tuple[str, ...] = ()
    smallest: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    others: bool = False
    patterns: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def named(self) -> str:
        """The mistakes' names in one text; of more than two, an "and" would not show where each begins."""
        return (" and " if len(self.mistakes) < 3 else "; ").join(self.mistakes)

    def lines(self, hint: Hint) -> list[Line]:
        """The diagnosis in words."""
        kind = "The mistake" if len(self.mistakes) == 1 else f"The {len(self.mistakes)} mistakes"
        kind = "One mistake of several" if self.others else kind
        named = self.mistakes and hint != "where"
        lines: list[Line] = [("mistake", f"{kind}: {self.named}.")] if named else []
        texts = list(self.what) if hint != "where" else []
        if hint == "fix" and len(self.fix) == len(self.what):  # how to fix it stands beside what is wrong
            texts = [each for pair in zip(self.what, self.fix, strict=True) for each in pair]
        elif hint == "fix":
            texts += self.fix
        lines += [("text", each) for each in texts]
        if self.finding:
            # A named mistake needs no numbers; missing biases have no name.
            lines += self.finding.lines("where" if self.what else hint)
        if self.what or hint == "where":
            return lines
        fix = [self.finding.fix] if hint == "fix" and self.finding and self.finding.fix else []
        return lines + [("text", each) for each in (*self.facts, *fix)]

    def has_numbers(self, hint: Hint) -> bool:
        """Return whether the words have numbers that may be others in another case: a head, a position, a block."""
        catalogued = {*self.what, *self.fix, self.finding.fix if self.finding else ""}
        every = [text for kind, text in self.lines(hint) if kind == "text"]
        if re.search(r"blocks?[. ][1-9]|blocks 0", " ".join(every)):
            return True
        words = " ".join(text for text in every if text not in catalogued)
        # GELU's constants, and block 0, are the same in every case.
        words = re.sub(r"`[^`]*`|lines? [\d, and]+|1/sqrt|\(block 0\)|\S+ x[²³]|sqrt\(2/pi\)|1 \+", "", words)
        return bool(re.search(r"(?<![\w.-])\d", re.sub(r"in GELU times \S+\. GPT-2 has that times \S+", "", words)))


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence.

    Example:
        >>> listed(["w", "b", "eps"])
        'w, b and eps'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
