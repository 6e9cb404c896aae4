"""Collect the sources of the documentation site in ``build/site``: ``python docs/site/gather.py``, from the root.

The site has a page for each Markdown file of ``docs/``, the README as its start page, a page for each notebook with its
stored outputs, and one API page for each public package. ``mkdocs.yml`` then builds it. Nothing outside ``build/site``
is written.
"""

import base64
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "site"

API = {
    "components": ("",),
    "assembly": ("",),
    "weights": ("",),
    "training": ("", ".run", ".presets", ".data.config"),
    "sampling": ("",),
    "ladder": ("", ".adapters"),
    "lens": ("",),
    "tokenizer": ("",),
}
"""Packages with an API page, and the modules or objects that it shows."""

_LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")


def main() -> None:
    """Write the pages, the pictures that they show, and a copy of the package for the API pages."""
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "docs" / "api").mkdir(parents=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    repository = project["project"]["urls"]["Repository"]

    for source in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        name = "index.md" if source.name == "README.md" else source.name
        text = source.read_text(encoding="utf-8")
        (OUT / "docs" / name).write_text(site_links(text, source.parent, repository), encoding="utf-8")
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = notebook_page(json.loads(source.read_text(encoding="utf-8")), source.stem)
        text += f"\n\n[This page as a notebook]({repository}/blob/main/notebooks/{source.name})\n"
        page = OUT / "docs" / f"tutorial-{source.stem}.md"
        page.write_text(site_links(text, source.parent, repository), encoding="utf-8")
    for name, parts in API.items():
        shown = "\n\n".join(f"::: gptladder.{name}{part}" for part in parts)
        (OUT / "docs" / "api" / f"{name}.md").write_text(f"# gptladder.{name}\n\n{shown}\n", encoding="utf-8")

    # The API pages need a folder named gptladder. A link to the root would make the reader walk through .venv too, so
    # the package's own files are copied.
    package = OUT / "src" / "gptladder"
    package.mkdir(parents=True)
    for module in ROOT.glob("*.py"):
        (package / module.name).write_text(with_sections(module.read_text(encoding="utf-8")), encoding="utf-8")
    for dotted in project["tool"]["setuptools"]["packages"][1:]:
        folder = Path(*dotted.split(".")[1:])
        (package / folder).mkdir(parents=True, exist_ok=True)
        for module in (ROOT / folder).glob("*.py"):
            text = with_sections(module.read_text(encoding="utf-8"))
            (package / folder / module.name).write_text(text, encoding="utf-8")


def with_sections(source: str) -> str:
    """Return a module with every doctest in a section ``Examples``: elsewhere ``>>>`` would be taken for quotations."""
    lines: list[str] = []
    section: int | None = None  # indentation of the section's heading
    shift = False
    for line in source.splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        shift = shift and bool(text) and text != '"""'
        if text in ("Example:", "Examples:"):
            section, line = indent, f"{' ' * indent}Examples:"
        elif section is not None and text and indent <= section:
            section = None
        if text.startswith(">>> ") and section is None and not shift:
            lines.append(f"{' ' * indent}Examples:")
            shift = True
        lines.append(f"    {line}" if shift else line)
    return "\n".join(lines) + "\n"


def notebook_page(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook as Markdown; its pictures are written beside the page."""
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for number, output in enumerate(cell["outputs"]):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif picture := output.get("data", {}).get("image/png"):
                file = f"{name}-{cell['id']}-{number}.png"
                (OUT / "docs" / file).write_bytes(base64.b64decode("".join(picture)))
                parts.append(f"![What the cell above draws](site:{file})")
    return "\n\n".join(parts)


def site_links(text: str, folder: Path, repository: str) -> str:
    """Return a Markdown text with its links to files of the repository changed so that they hold within the site.

    A link to a page of ``docs/`` or to a notebook becomes a link to the site's page. A picture is copied into the site.
    Any other file is linked in the repository. The README's links are addresses, because PyPI shows it too; those of
    the repository's own files are changed like relative ones.

    Args:
        text: the Markdown.
        folder: where the file stands that holds the text.
        repository: address of the repository's front page.
    """
    raw = repository.replace("//github.com", "//raw.githubusercontent.com") + "/main/"
    own = (f"{repository}/blob/main/", raw)

    def changed(match: re.Match[str]) -> str:
        label, target = match.groups()
        if target.startswith("site:"):
            return f"{label}({target.removeprefix('site:')})"
        start = next((each for each in own if target.startswith(each)), None)
        if start is None and re.match(r"[a-z]+:|#", target):
            return match[0]
        base = folder if start is None else ROOT
        path, mark, anchor = target.removeprefix(start or "").partition("#")
        inside = (base / path).resolve().relative_to(ROOT)
        if label.startswith("!"):
            shutil.copy(ROOT / inside, OUT / "docs")
            return f"{label}({inside.name})"
        if inside.parent == Path("docs") and inside.suffix == ".md":
            return f"{label}({inside.name}{mark}{anchor})"
        if inside.suffix == ".ipynb" and "This page" not in label:
            return f"{label}(tutorial-{inside.stem}.md)"
        return f"{label}({repository}/blob/main/{inside.as_posix()}{mark}{anchor})"

    return _LINK.sub(changed, text)


if __name__ == "__main__":
    main()
