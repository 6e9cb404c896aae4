"""Submissions in files of every kind: text, notebooks, zip files, folders; damaged, oddly packed, oddly named."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path


def text(content: str | bytes, suffix: str = ".py") -> Callable[[Path], None]:
    """Return what writes a file with a content."""
    data = content.encode(errors="surrogateescape") if isinstance(content, str) else content

    def write(path: Path) -> None:
        path.with_name(path.name + suffix).write_bytes(data)

    return write


def notebook(*cells: str) -> Callable[[Path], None]:
    """Return what writes a notebook."""
    listed = [{"cell_type": "code", "source": cell, "metadata": {}, "outputs": []} for cell in cells]
    return text(json.dumps({"cells": listed, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), ".ipynb")


def zipped(files: dict[str, str]) -> Callable[[Path], None]:
    """Return what writes a zip file."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path.with_name(path.name + ".zip"), "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in files.items():
                packed.writestr(name, content)

    return write


def in_folder(files: dict[str, str]) -> Callable[[Path], None]:
    """Return what writes a folder; a content that begins with ``->`` is a link's target."""

    def write(path: Path) -> None:
        for name, content in files.items():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if content.startswith("->"):
                target.symlink_to(content[2:])
            else:
                target.write_text(content)

    return write


def odd(right: str) -> dict[str, tuple[Callable[[Path], None], tuple[str, ...]]]:
    """Return damaged, oddly packed and oddly named submissions of a right layer, and what each may be found to be."""
    nothing, unreadable = ("no layer", "cannot be read"), ("cannot be read", "no layer", "crashed")
    return {
        "empty": (text(""), nothing),
        "comment": (text("# to do"), nothing),
        "syntax-error": (text("class Attention(:\n"), unreadable),
        "half": (text(right[: len(right) // 2]), (*unreadable, "wrong", "cannot be built")),
        "binary": (text(os.urandom(5000)), unreadable),
        "zeros": (text(bytes(5000)), unreadable),
        "utf16": (text(right.encode("utf-16")), unreadable),
        "windows": (text(right.replace("\n", "\r\n")), ("right",)),
        "bom": (text(b"\xef\xbb\xbf" + right.encode()), ("right",)),
        "latin1": (text(right.replace("import math", "import math  # caf\xe9").encode("latin1")), ("right",)),
        "deep": (text("x = " + "(" * 100_000), unreadable),
        "many-classes": (text("\n".join(f"class C{i}: pass" for i in range(5000)) + right), ("right",)),
        "long-line": (text(right + "x = '" + "y" * 5_000_000 + "'\n"), ("right",)),
        "notebook": (notebook("!pip install einops\n%matplotlib inline", right, "Attention(1 / 0)"), ("right",)),
        "broken-notebook": (text("{}", ".ipynb"), unreadable),
        "no-notebook": (text(os.urandom(3000), ".ipynb"), unreadable),
        "zipped": (zipped({"work/attention.py": right, "a.txt": "x", "__MACOSX/._attention.py": "x"}), ("right",)),
        "zip-slip": (zipped({"../../other_right.py": "forged", "/etc/forged.py": "x", "a.py": right}), ("right",)),
        "zip-bomb": (zipped({"a.py": "#" * (300 << 20)}), ("cannot be read",)),
        "no-zip": (text(os.urandom(2000), ".zip"), ("cannot be read",)),
        "empty-zip": (zipped({}), nothing),
        "links": (in_folder({"attention.py": "->../other_right.py"}), nothing),
        "links-to-folder": (in_folder({"all": "->..", "x.txt": ""}), nothing),
        "two-files": (in_folder({"a_template.py": right.replace("return self", "raise NotImplementedError; self"),
                                 "attention.py": right}), ("right",)),
        "many-files": (in_folder({f"u{i}.py": "def f(): pass\n" for i in range(300)} | {"z.py": right}), ("right",)),
        "package": (in_folder({"gpt/__init__.py": "", "gpt/parts.py": "SIZE = 3\n",
                               "gpt/attention.py": "from .parts import SIZE\n" + right}), ("right",)),
        "environment": (in_folder({"venv/pyvenv.cfg": "", "venv/attention.py": "x = (", "a.py": right}), ("right",)),
        "nothing-to-read": (in_folder({"essay.pdf": "%PDF"}), ("no layer",)),
        "Ann Lee_123456_assignsubmission_file_": (in_folder({"my attention.py": right}), ("right",)),
        "leeann_LATE_12345_678910_attention-1": (text(right), ("right",)),
        "=HYPERLINK(1)": (text(right), ("right",)),
        "\u00e9\u4e2d\U0001f600 'quoted' \"x\" & <b>": (text(right), ("right",)),
        "new\nline\x1b[31m": (text(right), ("right",)),
        "long-" + "n" * 240: (text(right), ("right",)),
        os.fsdecode(b"bytes-\xff\xfe"): (text(right), ("right",)),
    }  # fmt: skip
