"""The rules that can be checked in the source: imports, extras, what a layer may use, and the form of tests."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom up. The names in one set may not import each other.
FLOORS: list[set[str]] = [
    {"files", "options", "extras", "device"},
    {"gguf_file"},
    {"tokenizer"},
    {"components"},
    {"assembly"},
    {"weights"},
    {"training", "sampling"},
    {"ladder", "lens"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}

# `GPT2.from_pretrained` imports weights when it is called, so that importing assembly does not import weights.
DOORS_UPWARDS = {("assembly/model.py", "weights")}

# Extras may be imported only when they are used, except by these files.
EXTRAS = {"transformer_lens", "transformers", "tensorflow", "matplotlib", "tensorboard", "pyarrow", "gguf", "wandb"}
MAY_IMPORT_EXTRAS = {"ladder/references.py"}

TESTS = sorted((ROOT / "tests").rglob("*.py"))

FILES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0]
    in {
        *LEVEL,
        "cli.py",
        "files.py",
        "options.py",
        "extras.py",
        "device.py",
        "gguf_file.py",
        "__init__.py",
        "__main__.py",
    }
)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield what a file imports: ``.part`` of the package or another package, and whether a function imports it."""
    tree = ast.parse(path.read_text())
    late = {node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)}
    package = ("gptladder", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node in late
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            full = [*base, *(node.module or "").split(".")]
            full = [part for part in full if part]
            for target in [full[1]] if len(full) > 1 else [alias.name for alias in node.names]:
                yield f".{target}", node in late
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0], node in late


def test_the_package_is_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} >= {
        "components",
        "assembly",
        "weights",
        "ladder",
        "cli.py",
    }
    assert (".weights", True) in set(imports(ROOT / "assembly" / "model.py"))
    assert (".assembly", False) in set(imports(ROOT / "weights" / "pretrained.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    here = str(path.relative_to(ROOT))
    floor = here.split("/")[0].removesuffix(".py")
    if floor in ("__init__", "__main__"):
        return  # the façade may name anything
    for target, late in imports(path):
        assert target != "gptladder", f"{here} imports its own package by its absolute name"
        if not target.startswith("."):
            continue
        name = target[1:]
        if name == floor or (late and (here, name) in DOORS_UPWARDS) or name not in LEVEL:
            continue
        assert LEVEL[name] < LEVEL[floor], f"{here} imports {name}, which does not stand below {floor}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_extras_are_loaded_only_when_used(path: Path) -> None:
    here = str(path.relative_to(ROOT))
    early = {target for target, late in imports(path) if not late} & EXTRAS
    assert not early or here in MAY_IMPORT_EXTRAS, f"{here} imports {early} at once"


FORBIDDEN = {"MultiheadAttention", "LayerNorm", "Embedding"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_layer_is_torchs(path: Path) -> None:
    if path.relative_to(ROOT).parts[:2] in (("ladder", "references.py"), ("ladder", "candidate")):
        return  # there they are what ours are compared with, or what users' layers are built from
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            used = owner in ("nn", "modules") and (node.attr in FORBIDDEN or node.attr.startswith("Transformer"))
            assert not used, f"{path.name}:{node.lineno} uses nn.{node.attr}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.nn"):
            taken = {alias.name for alias in node.names}
            assert not {name for name in taken if name in FORBIDDEN or name.startswith("Transformer")}, path.name


LAYER_FILES = ("embed", "pos_embed", "layer_norm", "attention", "mlp", "block", "unembed")


@pytest.mark.parametrize("layer", LAYER_FILES)
def test_a_layer_is_only_a_layer(layer: str) -> None:
    source = (ROOT / "components" / f"{layer}.py").read_text()
    names = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    forbidden = {"is_grad_enabled", "is_compiling", "mkldnn", "ops", "type", "__class__", "is_meta", "backends"}
    assert not names & forbidden, f"components/{layer}.py decides by {names & forbidden}: that belongs in kernels.py"
    assert not any(isinstance(node, ast.Global) for node in ast.walk(ast.parse(source)))
    assert "packed" not in source.lower()
    assert source.count("\n") <= 180


# Lines. What is longer is two things; a function's lines include its docstring.
LONGEST_FILE, LONGEST_CLASS, LONGEST_FUNCTION = 400, 250, 80
SCRIPTS = sorted(path for folder in ("benchmarks", "demos") for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_classes_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= LONGEST_FILE, f"{path.name} has {source.count(chr(10))} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            most = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
            assert lines <= most, f"{path.name}: {node.name} has {lines} lines, where {most} are allowed"


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_are_typed_and_described(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = f"{path.name}:{node.lineno}: {node.name}"
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            untyped = [arg.arg for arg in every if arg and arg.annotation is None and arg.arg not in ("self", "cls")]
            assert not untyped, f"{where}: {', '.join(untyped)} have no type"
            assert node.returns is not None, f"{where} has no return type"
            assert len(node.name) <= 70, f"{where} has a name of {len(node.name)} characters: 70 are allowed"


def test_the_file_map_of_the_contributing_guide_is_short_and_true() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = guide.split("## Where things are")[1].split("## ")[0].splitlines()
    file_map = [line for line in lines if line.startswith("    ")]
    assert 10 <= len(file_map) <= 25
    folder = ROOT
    for line in file_map:
        paths = re.split(r"\s{2,}", line.strip())[0].split(", ")
        if not line.startswith("      "):
            folder = ROOT / paths[0]
        for path in paths:
            assert (ROOT / path if not line.startswith("      ") else folder / path).exists(), line
    for path in re.findall(r"`((?:\w+/)+[\w.]*|\w+\.py)`", guide):
        assert list(ROOT.glob(f"**/{path}")), f"{path} does not exist"


CHECKS = {"raises", "warns", "fail", "raise_if_failed", "assert_close", "opcheck", "gradcheck", "gradgradcheck"}


def what_it_calls(function: ast.AST) -> set[str]:
    """Return the names of the functions that a function calls; ``assert`` among them, and ``run`` where it checks."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            found.add("assert")
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            checks = called != "run" or any(keyword.arg == "check" for keyword in node.keywords)
            found |= {called} if checks else set()
    return found


def test_every_test_asserts_something() -> None:
    functions = [
        (path, node.name, isinstance(node, ast.FunctionDef), what_it_calls(node))
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    checks = {"assert", "run", *CHECKS}
    for _ in range(4):  # helpers call helpers
        checks |= {name for _, name, _, calls in functions if not name.startswith("test_") and calls & checks}
    idle = [
        f"{path.name}: {name}"
        for path, name, is_function, calls in functions
        if is_function and name.startswith("test_") and not calls & checks
    ]
    assert not idle
