"""Attention one head at a time: the sums that a loop over the heads goes through."""

import itertools
from collections.abc import Iterator, Sequence

from .number_sets import Numbers, sorted_numbers
from .quantities import Quantity
from .results import listed
from .rungs import Trial


def partial_sums(trial: Trial, steps: Sequence[Quantity]) -> Iterator[tuple[str, Numbers]]:
    """Yield the sums of some heads' outputs, and of those and b_O: each in words, and its numbers.

    The sum of all heads is a step of the formula, and one head's output is a part of one.
    """
    for quantity in steps:
        if not quantity.key.endswith("z W_O"):
            continue
        each = quantity.value.unbind(2)
        bias = trial.parameters[quantity.key.removesuffix("z W_O") + "b_O"]
        some = (heads for count in range(1, len(each)) for heads in itertools.combinations(range(len(each)), count))
        for heads in some:
            total = sum((each[head] for head in heads[1:]), each[heads[0]])
            if len(heads) == 1:
                yield f"the output of head {heads[0]} and b_O, added", sorted_numbers(total + bias)
                continue
            of = f"the outputs of heads {listed([str(head) for head in heads])}"
            yield f"{of}, added", sorted_numbers(total)
            yield f"{of} and b_O, added", sorted_numbers(total + bias)
