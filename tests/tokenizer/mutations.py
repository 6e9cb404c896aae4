"""Damage to tokenizer files, drawn at random and the same for each seed: of bytes, and of the JSON itself."""

import copy
import json
import random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 255, 256, 399, 2**31, 2**32, 2**64, 10**30, 1.5, 1e308, -0.0),
    *(
        "",
        "a",
        "A",
        "Ġ",
        "<|endoftext|>",
        "\ud800",
        "é",
        "\x00",
        "(",
        "[\\s\\S",
        "BPE",
        "ByteLevel",
        "WordPiece",
        "NFC",
    ),
    *([], {}, [[]], [["a", "b"]], ["a b"], {"type": "NFC"}, {"type": "ByteLevel"}, {"a": 0}, [None], [1, 2, 3]),
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return a file's content with one to three faults."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice((_bytes, _json, _json, _json))(content, draw)
    return content


def _bytes(content: bytes, draw: random.Random) -> bytes:
    if not content:
        return b"{"
    at = draw.randrange(len(content))
    some = content[at : at + draw.choice((1, 1, 8, 60))]
    match draw.randrange(7):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
        case 2:
            return content[:at] + content[at + len(some) :]
        case 3:
            return content[:at] + some + content[at:]
        case 4:
            return (
                content[:at]
                + draw.choice((b"\x00", b"\xff", b"[" * 100_000, b'{"a":' * 5000, b"NaN", b"\r"))
                + content[at:]
            )
        case 5:
            return content.replace(some, b"", 1)
        case _:
            return content[at:] + content[:at]


def _json(content: bytes, draw: random.Random) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _bytes(content, draw)
    places: list[tuple[Any, Any]] = []
    _walk(value, places, draw)
    if not places:
        return _bytes(content, draw)
    # Most places are in the vocabulary: prefer those high up.
    holder, key = draw.choice(places[: draw.choice((10, 40, len(places)))])
    match draw.randrange(6):
        case 0:
            del holder[key]
        case 1 | 2:
            holder[key] = copy.deepcopy(draw.choice(ODD_VALUES))
        case 3:
            other_holder, other_key = draw.choice(places)
            holder[key] = copy.deepcopy(other_holder.get(other_key) if isinstance(other_holder, dict) else None)
        case 4 if isinstance(holder, dict):
            holder[draw.choice(("type", "id", "content", "vocab", "unknown", "a", "a b", "<pad>"))] = holder[key]
        case _:
            return _twice(json.dumps(value, ensure_ascii=False), draw).encode("utf-8", "surrogatepass")
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _twice(text: str, draw: random.Random) -> str:
    """Return JSON in which an object has a key twice."""
    at = text.find(draw.choice(('"type"', '"model"', '"vocab"', '"content"', '"id"', '"a"')))
    return text if at < 0 else text[:at] + '"type": "NFC", "type": "BPE", ' + text[at:]


def _walk(value: Any, places: list[tuple[Any, Any]], draw: random.Random) -> None:
    """List the places in a JSON value, breadth first, at most twenty of each object."""
    waiting = [value]
    while waiting:
        holder = waiting.pop(0)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if len(keys) > 20:
            keys = draw.sample(keys, 20)
        for key in keys:
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
