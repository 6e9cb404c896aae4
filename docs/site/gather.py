"""Collect the sources of the documentation site in ``build/site``: ``python docs/site/gather.py``, from the root.

The site has a page for each Markdown file of ``docs/``, the README as its start page, and one API page for each public
package. ``mkdocs.yml`` then builds it. Nothing outside ``build/site`` is written.
"""

import re
import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "site"

PUBLIC = ("components", "assembly", "weights", "training", "sampling", "ladder", "lens", "tokenizer")
"""Packages and modules with an API page."""

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
    for name in PUBLIC:
        page = f"# gptladder.{name}\n\n::: gptladder.{name}\n"
        (OUT / "docs" / "api" / f"{name}.md").write_text(page, encoding="utf-8")

    # The API pages need a folder named gptladder. A link to the root would make the reader walk through .venv too, so
    # the package's own files are copied.
    package = OUT / "src" / "gptladder"
    package.mkdir(parents=True)
    for module in ROOT.glob("*.py"):
        shutil.copy(module, package)
    for dotted in project["tool"]["setuptools"]["packages"][1:]:
        folder = Path(*dotted.split(".")[1:])
        (package / folder).mkdir(parents=True, exist_ok=True)
        for module in (ROOT / folder).glob("*.py"):
            shutil.copy(module, package / folder)


def site_links(text: str, folder: Path, repository: str) -> str:
    """Return a Markdown text with its relative links changed so that they hold within the site.

    A link to a page of ``docs/`` becomes a link to the site's page. A picture is copied into the site. Any other file
    is linked in the repository.

    Args:
        text: the Markdown.
        folder: where the file stands that holds the text.
        repository: address of the repository's front page.
    """

    def changed(match: re.Match[str]) -> str:
        label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, mark, anchor = target.partition("#")
        inside = (folder / path).resolve().relative_to(ROOT)
        if label.startswith("!"):
            shutil.copy(ROOT / inside, OUT / "docs")
            return f"{label}({inside.name})"
        if inside.parent == Path("docs") and inside.suffix == ".md":
            return f"{label}({inside.name}{mark}{anchor})"
        return f"{label}({repository}/blob/main/{inside.as_posix()}{mark}{anchor})"

    return _LINK.sub(changed, text)


if __name__ == "__main__":
    main()
