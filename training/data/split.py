"""Where a text is split into the training part and the validation part.

The two parts are contiguous: the training part is the beginning of the text, the validation part the rest. The
validation part has its share of the tokens to within a hundredth of the text: it begins with a document if one begins
that near, so that no validation document is also in the training data, and otherwise inside a document.
"""

from collections.abc import Callable, Iterable

__all__ = ["validation_start"]

_SLACK = 100  # the split may be moved by one part in so many of the text


def validation_start(
    tokens: int, documents: int, val_fraction: float, document_ends: Callable[[int, int], Iterable[int]]
) -> tuple[int, bool]:
    """Return the first validation token, and whether it is inside a document.

    It is the token at the requested share, moved to the next beginning of a document, or else to the one before, if
    that is within a hundredth of the text.

    Args:
        tokens: number of tokens in the text.
        documents: number of documents in the text.
        val_fraction: share of the tokens, taken from the end, for validation.
        document_ends: given two tokens, returns the position after each end of a document between them, in order.

    Raises:
        ValueError: the text has fewer than two tokens.

    >>> ends = [300, 890, 1000]
    >>> validation_start(1000, 3, 0.1, lambda first, last: [end for end in ends if first < end <= last])
    (890, False)
    >>> validation_start(1000, 1, 0.1, lambda first, last: [])
    (900, True)
    """
    if tokens < 2:
        raise ValueError(f"the text has {tokens} tokens, too few to hold some back for validation: give more text")
    start = min(max(int(tokens * (1 - val_fraction)), 1), tokens - 1)
    if documents > 1:
        slack = tokens // _SLACK
        ends = list(document_ends(max(1, start - slack) - 1, min(tokens - 1, start + slack)))
        near = [end for end in ends if end >= start][:1] or ends[-1:]
        if near:
            return near[0], False
    return start, True
