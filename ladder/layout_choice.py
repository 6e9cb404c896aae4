"""Which way to read a layer's parameters: each is tried, with each mask that its forward may want.

A layer that is right under one way is right: no way of reading makes a wrong function right.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from .answers import Answer, close, difference
from .candidate.masks import HIDING_NOTHING, MASKS
from .candidate.places import Place
from .candidate.requests import Reply
from .candidate.trace import Event
from .cases import with_other_input
from .formula.trace_matching import Matched
from .rungs import Trial

# A trial, and how to run the layer on it: the fields of a `Request`.
Asked = tuple[Trial, dict[str, Any]]
# Gives the layer's reply to each, in order; it may work on one while the next is made.
Replies = Callable[[Iterable[Asked]], Iterator[Reply]]

# Ways to read the parameters of a wrong layer that are traced, until the scores are right under one; and as many after.
_MOST_TRACED = 50
# Products of a head's queries and keys, and what is made of them: right ones show which numbers are a head's.
_PRODUCTS = ("raw", "scores", "masked", "pattern", "z")
_RIGHT = 1e-4
# How a reading names the order of q, k and v; and how a file does.
_ORDER = re.compile(r"holds ([qkv], [qkv], [qkv]) as")
_PIECES = re.compile(r"(\S+)\[(\d+)\], \1\[(\d+)\], \1\[(\d+)\] are")
_UNPACKED = re.compile(r"\s*\(?(q\w*|k\w*|v\w*), *(q\w*|k\w*|v\w*), *(q\w*|k\w*|v\w*)\)? *=[^=]", re.I)
_INDEX = re.compile(r"\[[^\[\]]*\d\]")
# Steps that queries and keys exchanged may seem to explain; and more than there are.
_EXCHANGE, _MANY = 2, 1000
# Answers of a wrong shape, one for each way, after which no other way is tried.
_MISSHAPEN = 4


class LayoutChoice:
    """Tries the ways to read a layer's parameters on one trial, and chooses one.

    Args:
        first: the reply that lists the ways.
        trial: a trial with several heads and positions: otherwise different ways give the same answer.
        replies: the layer.
    """

    def __init__(self, first: Reply, trial: Trial, replies: Replies) -> None:
        self.first, self.trial, self._replies = first, trial, replies
        self.tried: dict[int, Reply] = {}  # by the number of the way
        self.steps_found: dict[int, int] = {}  # of each way that was traced: how many of GPT-2's steps the layer has
        self._most = _MOST_TRACED

    def choose(self) -> tuple[int, Reply]:
        """Return the way under which the layer is right, or else the likeliest; and the first reply, as it gives it."""
        right = self._first_right()
        if right is None:
            return self._likeliest()
        # A mask from outside would hide what is wrong with the layer's own.
        alone = [way for way, reply in self.tried.items() if not reply.mask]
        alone = [way for way in alone if self.tried[way].reading == self.tried[right].reading]
        if self.tried[right].mask and alone and self._masks_by_itself(alone[-1]):
            right = alone[-1]
        if self.tried[right].mask in MASKS and (own := self._right_without_a_causal_mask(right)) is not None:
            right = own
        return right, self._as_read(self.tried[right])

    def _first_right(self) -> int | None:
        """Try one way after another, and return the first under which the layer is right; None if there is none."""
        asked: deque[int] = deque()
        split: str | None = None  # of a way under which the scores are right: the layer is right under no other
        matched: Matched | None = None
        misshapen = 0  # answers of a wrong shape: no way of reading the parameters changes that

        def questions() -> Iterator[Asked]:
            for way, its_split in enumerate(self.first.ways):
                if split in (None, its_split) and misshapen < _MISSHAPEN:
                    asked.append(way)
                    yield self.trial, {"layout": way, "look": self._tracing, "gradients": False}

        for reply in self._replies(questions()):
            way = asked.popleft()
            self.tried[way] = reply
            if reply.answer is None:
                misshapen += reply.fault is not None and reply.fault.kind == "shape"
                continue
            if difference(reply.answer.output, self.trial.expected.output) <= _RIGHT:
                return way
            if self._tracing:  # the layer works on the next meanwhile
                matched = Matched(self.trial, reply.trace, like=matched)
                found = matched.found
                self.steps_found[way] = len(found)
                if split is None and any(key.endswith(_PRODUCTS) for key in found):
                    split, self._most = self.first.ways[way], len(self.steps_found) + _MOST_TRACED
        return None

    def _right_without_a_causal_mask(self, right: int) -> int | None:
        """Return a way with a mask that hides nothing under which the layer is right too: it masks by itself."""
        for way, mask in enumerate(self.first.masks):
            if mask not in HIDING_NOTHING or self.first.ways[way] != self.first.ways[right]:
                continue
            asked = (self.trial, {"layout": way, "gradients": False})
            reply = self.tried[way] = next(self._replies([asked]), Reply())
            if reply.answer and difference(reply.answer.output, self.trial.expected.output) <= _RIGHT:
                return way
        return None

    @property
    def _tracing(self) -> bool:
        return len(self.steps_found) < self._most

    def _likeliest(self) -> tuple[int, Reply]:
        """Return the way under which the layer has most of GPT-2's steps, with a mask that hides the future.

        If every mask makes the layer raise, each in another way, it is refused.
        """
        # Which numbers the parameters are makes no difference to what a mask hides: one way for each mask will do.
        causal: dict[str, bool] = {}
        for way in self.steps_found:
            mask = self.tried[way].mask
            causal[mask] = causal[mask] if mask in causal else self._is_causal(way)

        alone = [way for way in self.steps_found if not self.tried[way].mask]
        hides = 0 < len(alone) < len(self.steps_found) and self._hides(alone[0])
        named = self._named_order()

        def rank(way: int) -> tuple[bool, bool, bool, float]:
            reply = self.tried[way]
            finite = reply.answer is not None and bool(reply.answer.output.isfinite().all())  # a mask may hide all
            order = order_read(reply.reading)
            # Another order than the usual one must explain more than the exchange that it would be otherwise.
            odd = order not in ("", named or "q, k, v")
            steps = self.steps_found[way] - (_EXCHANGE if odd else 0)
            unmasked = hides and not reply.mask
            return (
                finite and (unmasked or causal[reply.mask]),
                unmasked,
                finite,
                steps - (_MANY if odd and named else 0),
            )

        best = max(self.steps_found, key=rank, default=None)
        chosen = self.first if best is None else self._as_read(self.tried[best])
        if self.trial.given.is_floating_point() and not any(causal.values()):
            chosen = self._refused(chosen)
        return best or 0, chosen

    def _named_order(self) -> str:
        events = next((self.tried[way].trace.events for way in self.steps_found), [])
        return next((order for _, order in named_orders(events)), "")

    def _as_read(self, reply: Reply) -> Reply:
        """Return the first reply with what is known of how the parameters were read in another."""
        return replace(self.first, notes=reply.notes, reading=reply.reading, oddity=reply.oddity)

    def _masks_by_itself(self, way: int) -> bool:
        """Return whether the layer treats positions differently although it is given no mask.

        Attention that hides nothing treats all positions alike: inputs in reverse order give the outputs in reverse.
        """
        if not self.trial.given.is_floating_point():
            return False
        back, answer = self._answer_to(self.trial.given.flip(1), way), self.tried[way].answer
        return back is None or answer is None or not close(back.output.flip(1), answer.output)

    def _hides(self, way: int) -> bool:
        """Return whether the layer, given no mask, hides something: another input somewhere leaves an output alone."""
        answer = self.tried[way].answer
        if answer is None or not self.trial.given.is_floating_point():
            return False
        for place in range(self.trial.given.shape[1]):
            again = self._answer_to(with_other_input(self.trial, (slice(None), place)), way)
            if again is None or bool((again.output == answer.output).all(-1).any()):
                return True
        return False

    def _is_causal(self, way: int) -> bool:
        """Return whether another last position changes nothing before it."""
        given = self.trial.given.clone()
        given[:, -1] = given[:, 0]
        again, answer = self._answer_to(given, way), self.tried[way].answer
        if again is None or answer is None or not bool(answer.output.isfinite().all()):
            return False  # NaN is equal to NaN, whatever the mask hides
        return close(again.output[:, :-1], answer.output[:, :-1])

    def _answer_to(self, given: Tensor, way: int) -> Answer | None:
        asked = (replace(self.trial, given=given), {"layout": way, "gradients": False})
        return next(self._replies([asked]), Reply()).answer

    def _refused(self, chosen: Reply) -> Reply:
        """Refuse a layer that raises with every mask, in several ways: what mask it takes is not known.

        One that answers without a mask is judged without one.
        """
        if any(reply.answer is not None and not reply.mask for reply in self.tried.values()):
            return chosen
        by_mask = {reply.mask: reply.fault for reply in self.tried.values() if reply.mask}
        faults = [fault for fault in by_mask.values() if fault is not None and fault.kind == "raises"]
        if not by_mask or len(faults) < len(by_mask):
            return chosen
        # What most masks bring about is no fault of the mask: of some shapes, any mask raises.
        message, count = Counter(fault.message for fault in faults).most_common(1)[0]
        if 2 * count > len(faults):
            return replace(chosen, fault=next(fault for fault in faults if fault.message == message))
        message = (
            f"forward takes a mask, and each kind that was tried raises; the last one: {faults[-1].message}. Write an "
            "adapter whose layer makes its own mask"
        )
        return replace(chosen, fault=replace(faults[-1], kind="refused", message=message))


def named_orders(events: Iterable[Event]) -> Iterator[tuple[Place, str]]:
    """Yield the lines in which a file names what it splits (``q, k, v = ...``), each with the order of the names."""
    for event in events:
        found = _UNPACKED.match(event.at[1]) if event.at else None
        letters = [each[0].lower() for each in found.groups()] if found else []
        picked = event.at is not None and len(_INDEX.findall(event.at[1])) > 1  # q, k, v = qkv[1], qkv[0], qkv[2]
        if event.at and sorted(letters) == ["k", "q", "v"] and not picked:
            yield event.at, ", ".join(letters)


def order_read(reading: str) -> str:
    """Return the order in which a tensor of all three holds ``q, k, v`` by a reading; empty if there is none."""
    if found := _ORDER.search(reading):
        return found[1]
    pieces = _PIECES.search(reading)
    places = zip(map(int, pieces.groups()[1:]), "qkv", strict=True) if pieces else ()
    return ", ".join(letter for _, letter in sorted(places))
