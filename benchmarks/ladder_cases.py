"""How many mistakes the ladder names or locates, over files whose truth is known.

    python benchmarks/ladder_cases.py CASES [--only NAME] [--json FILE]

CASES holds ``manifest.json``: a list of ``{"file", "layer", "target", "truth", "mistake", "listed", "pair"}``.
Each file is tried as ``gptladder climb`` does, in this process. Whether a name is the right name is for a reader to
judge: the report stands beside the truth.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

from gptladder.ladder import climb
from gptladder.ladder.candidate.source import load


def tried(entry: dict[str, Any], folder: Path, as_class: bool) -> dict[str, Any]:
    """Return the result of one case beside its truth."""
    path = folder / entry["file"]
    loaded = load(path)
    target = entry["target"]
    made = loaded.get(target, str(path))
    if as_class and not isinstance(made, type):  # the class that the adapter is for
        from gptladder.ladder.candidate.finder import find_layers

        names = find_layers(loaded, {})[entry["layer"].replace("_", "-").replace("layernorm", "layer-norm")]
        made = loaded.get(next(name for name in names if isinstance(loaded.get(name, ""), type)), str(path))
    began = time.process_time()
    layers: dict[str, Any] = {entry["layer"]: made}
    result = climb(**layers).rungs[-1]
    return {
        **entry,
        "status": result.status,
        "mistakes": list(result.mistakes),
        "at": result.at,
        "text": result.text(),
        "notes": list(result.notes),
        "reading": result.reading,
        "seconds": round(time.process_time() - began, 2),
    }


def summary(found: list[dict[str, Any]]) -> str:
    """Return the rates, as far as they can be counted without reading."""

    def rate(kept: list[dict[str, Any]], good: Any) -> str:
        return f"{sum(map(good, kept))} of {len(kept)}"

    wrong = [each for each in found if each["truth"] == "wrong"]
    unlisted = [each for each in wrong if not each["pair"] and not each["listed"]]
    singles = [each for each in wrong if not each["pair"]]
    return "\n".join(
        [
            f"caught: {rate(wrong, lambda e: e['status'] != 'passed')}",
            f"listed singles named: {rate([e for e in singles if e['listed']], lambda e: bool(e['mistakes']))}",
            f"unlisted singles named or located: {rate(unlisted, lambda e: bool(e['mistakes'] or e['at']))}",
            f"pairs with two names: {rate([e for e in wrong if e['pair']], lambda e: len(e['mistakes']) > 1)}",
            f"right passed: {rate([e for e in found if e['truth'] != 'wrong'], lambda e: e['status'] == 'passed')}",
        ]
    )


def main() -> None:
    """Run every case, and print what was found beside the truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument(
        "--classes", action="store_true", help="try the classes themselves, without the files' adapters"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    entries = json.loads((arguments.cases / "manifest.json").read_text())
    found = []
    for entry in entries:
        if not re.search(arguments.only, entry["file"]):
            continue
        result = tried(entry, arguments.cases, arguments.classes)
        found.append(result)
        kind = "pair" if entry["pair"] else "listed" if entry["listed"] else "unlisted"
        print(f"--- {entry['file']} ({entry['truth']}, {kind}): {entry['mistake']}")
        print(f"{result['status']} {result['mistakes']} {result['seconds']} s")
        print(
            "\n".join(
                f"    {line}" for line in [*result["text"].splitlines(), *result["notes"], result["reading"]] if line
            )
        )
    print(summary(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
