"""The package as its users see it: what importing it loads, its types, and a wheel that installs one single name."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

WITHOUT_EXTRAS = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        extras = "transformer_lens transformers tensorflow matplotlib tensorboard gguf wandb"
        if name.split(".")[0] in extras.split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(code: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **kwargs)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # In a copy: setuptools leaves its build folder beside the sources.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (made,) = out.glob("*.whl")
    return made


def test_a_wheel_installs_one_single_name_with_every_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"gptladder"}
    packages = ["tokenizer", "components", "assembly", "weights", "training", "sampling", "ladder", "lens"]
    files = [path for package in packages for path in (ROOT / package).rglob("*") if path.is_file()]
    files += [*ROOT.glob("*.py"), ROOT / "__init__.pyi", ROOT / "py.typed"]
    expected = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert {name.removeprefix("gptladder/") for name in names if name.startswith("gptladder/")} == expected


def test_a_layer_from_the_wheel_works_without_the_extras(wheel: Path, tmp_path: Path) -> None:
    site, project = tmp_path / "site", tmp_path / "project"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for taken in ("components", "weights", "training"):
        (project / taken).mkdir(parents=True)
        (project / taken / "__init__.py").write_text("mine = True\n")
    code = f"""{WITHOUT_EXTRAS}
import torch, components, weights, training
import gptladder, gptladder.assembly, gptladder.weights, gptladder.training, gptladder.sampling
from gptladder.components import Attention
assert components.mine and weights.mine and training.mine
assert gptladder.__file__.startswith({str(site)!r}), gptladder.__file__
print(list(Attention(d_model=8, n_heads=2)(torch.zeros(1, 3, 8)).shape))
"""
    done = run(code, cwd=project, env={"PYTHONPATH": f"{site}:{project}"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1, 3, 8]"


def test_the_stub_for_type_checkers_has_the_packages_names() -> None:
    import gptladder

    stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    imported = {alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {*imported, "__version__"} == {*vars(gptladder)["_PARTS"], *vars(gptladder)["__all__"]}
    assert all(getattr(gptladder, name) is not None for name in imported)


def test_importing_it_brings_in_no_reference() -> None:
    code = "import sys, gptladder; {}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    assert "torch" not in run(code.format("gptladder.__version__"), check=True).stdout.split()
    loaded = set(run(code.format("gptladder.GPT2, gptladder.sampling"), check=True).stdout.split())
    assert not loaded & {
        "transformer_lens",
        "transformers",
        "matplotlib",
        "tensorflow",
        "pandas",
        "huggingface_hub",
        "hypothesis",
    }
    assert "torch" in loaded


@pytest.mark.parametrize("command", ["ladder", "parity"])
def test_a_command_without_its_extra_names_the_extra(command: str) -> None:
    done = run(f"{WITHOUT_EXTRAS}\nfrom gptladder.cli import main\nsys.exit(main([{command!r}]))")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("is not installed: pip install 'gptladder[reference]'")


def test_a_layer_brings_in_four_packages_and_nothing_else() -> None:
    imported = """
import sys
def others():
    return {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"gptladder", "__main__"}
before = others()
FIRST
first = others()
from gptladder.components import MLP
print("beartype" in sys.modules)
MLP(d_model=4)(sys.modules["torch"].zeros(1, 1, 4))
print(*sorted(others() - (first if first != before else before)))
"""
    four = {"torch", "einops", "jaxtyping", "beartype"}
    at_import, *alone = run(imported.replace("FIRST", ""), check=True).stdout.split()
    assert at_import == "False"  # it takes long to import, and is needed for the first check of a shape
    assert four <= set(alone)
    # What these four bring in themselves is theirs.
    first = f"import {', '.join(sorted(four))}, beartype.door"
    assert run(imported.replace("FIRST", first), check=True).stdout.split() == ["True"]


def test_the_parts_can_be_reached_without_an_import_of_their_own() -> None:
    parts = ["assembly", "components", "ladder", "lens", "sampling", "tokenizer", "training", "weights"]
    code = f"import gptladder; print(all(hasattr(gptladder, part) for part in {parts}), *dir(gptladder))"
    found, *names = run(code, check=True).stdout.split()
    assert found == "True"
    assert set(parts) <= set(names)
