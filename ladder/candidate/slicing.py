"""Which statements of a file its classes need; the rest is its script part."""

import ast
import re
from collections.abc import Iterator

from .aliases import canonical

# What a constant may call.
_CALLS = """
    dict int float str bool range len tuple list set max min
    ArgumentParser add_argument_group
    tensor item log exp tanh pow finfo iinfo
    field namedtuple TypeVar NewType is_available device SimpleNamespace sqrt partial Path getLogger cpu_count type
"""
_PLAIN_CALLS = frozenset(_CALLS.split())


def keeps(node: ast.stmt) -> bool:
    """Return whether a top-level statement is a definition rather than a part of the script."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return True
    if isinstance(node, ast.If | ast.Try) and not is_main(node):
        inside = [*node.body, *node.orelse, *(each for h in getattr(node, "handlers", []) for each in h.body)]
        return all(isinstance(each, ast.Pass) or (keeps(each) and not isinstance(each, ast.If)) for each in inside)
    if _is_path(node) or _adds_argument(node):
        return True
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is None:
            return False
        # Attention.forward = forward, as notebooks write it
        if all(isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) for each in targets):
            return isinstance(node.value, ast.Name | ast.Lambda)
        return all(isinstance(each, ast.Name | ast.Tuple) for each in targets) and _is_constant(node.value)
    return False


def _is_constant(value: ast.expr) -> bool:
    for node in ast.walk(value):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called not in _PLAIN_CALLS and not re.search("config|args|params", called, re.IGNORECASE):
                return False
        if isinstance(node, ast.Await | ast.Yield | ast.NamedExpr):
            return False
    return True


def _is_path(node: ast.stmt) -> bool:
    """Return whether a statement extends the path that imports are found on."""
    return isinstance(node, ast.Expr) and bool(re.match(r"sys\.path\.(insert|append|extend)\(", ast.unparse(node)))


def _adds_argument(node: ast.stmt) -> str:
    """Return the name of the parser if a statement adds an argument to it, whose default may be a size."""
    match node:
        case ast.Expr(
            value=ast.Call(func=ast.Attribute(value=ast.Name(id=parser), attr=("add_argument" | "set_defaults")))
        ):
            return parser
        case _:
            return ""


def is_docstring(node: ast.stmt) -> bool:
    """Return whether a statement is a string alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_main(node: ast.stmt) -> bool:
    """Return whether a statement is ``if __name__ == "__main__":``."""
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def binds(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    found = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in each.names}
        elif isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            found.add(each.id)
        elif isinstance(each, ast.ClassDef | ast.FunctionDef):
            found.add(each.name)
    return found


def _uses(node: ast.AST) -> set[str]:
    """Return the names that a statement needs; annotations do not count, unless they name a configuration."""
    found: set[str] = set()
    stack: list[ast.AST] = [node]
    while stack:
        each = stack.pop()
        if isinstance(each, ast.Name):
            found.add(each.id)
        for name, value in ast.iter_fields(each):
            if name in ("annotation", "returns"):
                if name == "annotation" and value is not None and "onfig" in ast.unparse(value):
                    found |= {inner.id for inner in ast.walk(value) if isinstance(inner, ast.Name)}
                continue
            stack += [inner for inner in (value if isinstance(value, list) else [value]) if isinstance(inner, ast.AST)]
    return found


def reachable(nodes: list[ast.stmt], wanted: set[str]) -> set[str]:
    """Return the names that the wanted classes need, and that those need, and configurations."""
    needed = set(wanted)
    for node in nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            configures = isinstance(node, ast.ClassDef) and re.search("config|args|param", node.name, re.IGNORECASE)
            needed |= {node.name} if configures or not wanted else set()
        elif _is_path(node):
            needed |= _uses(node)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            sizes = [key for key in node.value.keys if isinstance(key, ast.Constant) and canonical(str(key.value))]
            if len(sizes) >= 3:
                needed |= binds(node)
    before = -1
    while len(needed) > before:
        before = len(needed)
        for node in nodes:
            patched = [
                target.value.id
                for target in getattr(node, "targets", [])
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
            ]
            if binds(node) & needed or {*patched, _adds_argument(node)} & needed:
                needed |= _uses(node)
    return needed


def parts(node: ast.stmt, needed: set[str]) -> Iterator[ast.stmt]:
    """Yield the parts of a kept statement that are needed: of an import, one name at a time."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            if alias.name == "*" or (alias.asname or alias.name).split(".")[0] in needed:
                if isinstance(node, ast.Import):
                    yield ast.copy_location(ast.Import([alias]), node)
                else:
                    yield ast.copy_location(ast.ImportFrom(node.module, [alias], node.level), node)
    else:
        patches = any(isinstance(target, ast.Attribute) for target in getattr(node, "targets", []))
        if patches or _is_path(node) or (binds(node) | {_adds_argument(node)}) & needed:
            yield node
