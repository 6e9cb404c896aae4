"""The prose of package, docs, benchmarks, demos and tests is plain technical English: some phrases may not return."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A phrase that readers stumble over -> what to write instead.
INSTEAD = {
    r"where (?:it|they|that|none|one) (?:is|are) not given": "(default: …)",
    r"quick(?:er|est|ly)?(?![ -]?(?:start|GELU))": "fast, faster, fastest",
    r"told|said|says": "reported, printed; or the noun: message, report",
    r"nobody(?:'s)?|somebody(?:'s)?|anyone's|anybody(?:'s)?": "no hook, no caller, the user's",
    r"mend(?:s|ed|ing)?": "fix",
    r"(?:is|are|be|was|were) to be had|(?:not|cannot|can) be had": "available",
    r"what came of|what (?:it|they) makes? of": "result, output",
    r"shall": "will",
    r"who computes": "the backend",
    r"where it cannot|drawn anew|begins? anew": "if it cannot; drawn again, starts again",
}
PHRASES = re.compile("|".join(rf"\b(?:{phrase})\b" for phrase in INSTEAD), re.IGNORECASE)

FILES = sorted(
    {
        name
        for name in subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        if name.endswith((".py", ".pyi", ".md", ".toml", ".yml", ".css")) or name in ("Makefile", "constraints.txt")
        if (ROOT / name).is_file()
    }
)


def prose(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that are prose, with their numbers.

    Of Python these are comments and docstrings, and outside of tests all other strings too, without the code in
    f-strings. Strings in tests are data. Text between backticks is code.
    """
    if not name.endswith((".py", ".pyi")):
        yield from enumerate(text.splitlines(), 1)
        return
    docstrings = {
        node.body[0].lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node) is not None
    }
    for kind, string, line in _strings_and_comments(text):
        # A string of one word is a name.
        is_string = kind == tokenize.STRING and re.search(r"\s", string) is not None
        if kind == tokenize.COMMENT or (is_string and (line in docstrings or not name.startswith("tests/"))):
            words = re.sub(r"\{[^{}]*\}", "…", string) if re.match("[rRfF]*f", string) else string
            yield from enumerate(words.splitlines(), line)


def _strings_and_comments(text: str) -> Iterator[tuple[int, str, int]]:
    """Yield kind, text and line of each; an f-string, which is many tokens from Python 3.12 on, is one string."""
    begin, end = getattr(tokenize, "FSTRING_START", None), getattr(tokenize, "FSTRING_END", None)
    opened: list[tuple[int, int]] = []
    lines = text.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == begin:
            opened.append(token.start)
        elif token.type == end:
            (row, column), (last, stop) = opened.pop(), token.end
            whole = "".join(lines[row - 1 : last])
            string = whole[column : len(whole) - len(lines[last - 1]) + stop]
            if not opened:
                yield tokenize.STRING, string, row
        elif not opened and token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.type, token.string, token.start[0]


def test_prose_is_found_in_comments_docstrings_and_messages() -> None:
    code = '"""One a."""\ndef two() -> None:\n    """Three a."""\n    four = f"five {six!r}", "seven"  # eight\n'
    assert list(prose("a.py", code)) == [(1, '"""One a."""'), (3, '"""Three a."""'), (4, 'f"five …"'), (4, "# eight")]
    assert [line for line, _ in prose("tests/a.py", code)] == [1, 3, 4]
    assert list(prose("a.md", "one\ntwo")) == [(1, "one"), (2, "two")]
    assert [phrase[0] for phrase in PHRASES.finditer("It says: quicker than a quick start, which cannot be had")] == [
        "says",
        "quicker",
        "cannot be had",
    ]


@pytest.mark.parametrize("folder", sorted({name.split("/")[0] for name in FILES}))
def test_phrases_that_readers_stumble_over_do_not_return(folder: str) -> None:
    found = [
        f"{name}:{number}: {match[0]!r} in: {line.strip()}"
        for name in FILES
        if name.split("/")[0] == folder and name != "tests/test_words.py"
        for number, line in prose(name, re.sub(r"`[^`\n]+`", "`…`", (ROOT / name).read_text(encoding="utf-8")))
        for match in PHRASES.finditer(line)
    ]
    assert not found, "\n".join([*found, "Write instead:", *(f"  {old} -> {new}" for old, new in INSTEAD.items())])
