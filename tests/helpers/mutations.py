"""The mutants of a module, made by Cosmic Ray, and how a running process gets one. For `make mutants`."""

import ast
import itertools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

Functions = dict[tuple[str, int], list[types.FunctionType]]
"""The functions of a module by their qualified name and first line."""


class Mutant(NamedTuple):
    """A change of a module: the number of the changed line, the line as it is then, the source of the whole module."""

    number: int
    line: str
    source: str


def program(source: str) -> str:
    """Return what Python runs, without annotations, overloads, and a star between a function's parameters."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            node.args, node.posonlyargs, node.kwonlyargs = [*node.posonlyargs, *node.args, *node.kwonlyargs], [], []
            node.defaults, node.kw_defaults = [*node.defaults, *filter(None, node.kw_defaults)], []
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = [each for each in node.decorator_list if ast.unparse(each) != "overload"]
        for name in {"annotation", "returns"} & set(node._fields):
            setattr(node, name, None)
    return ast.dump(tree)


def mutants(source: str, operators: list[str]) -> Iterator[Mutant]:
    """Yield each mutant that is another program. ``operators`` lists the replacements of operators."""
    seen = {program(source)}
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or ("Operator_" in name and name.split("Operator_")[1] not in operators):
            continue
        for occurrence in itertools.count():
            if (mutated := mutate_code(source, operator(), occurrence)) is None:
                break
            try:
                new = program(mutated)
            except SyntaxError:
                continue
            if new not in seen:
                seen.add(new)
                pairs = enumerate(itertools.zip_longest(source.splitlines(), mutated.splitlines(), fillvalue=""), 1)
                number, line = next((number, now) for number, (was, now) in pairs if was != now)
                yield Mutant(number, " ".join(line.split()), mutated)


def outermost_function(tree: ast.Module | ast.ClassDef, number: int) -> ast.FunctionDef | None:
    """Return the function of a module or class in whose body the line is."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.body[0].lineno <= number <= (node.end_lineno or 0):
            return node
        if isinstance(node, ast.ClassDef) and (found := outermost_function(node, number)):
            return found
    return None


def changes_a_body_alone(source: str, mutant: Mutant) -> bool:
    """Return whether a mutant differs from the module in the body of one function, and nowhere else."""
    outside = []
    for each in (source, mutant.source):
        tree = ast.parse(each)
        if (function := outermost_function(tree, mutant.number)) is None:
            return False
        function.body = []
        outside.append(ast.dump(tree))
    return outside[0] == outside[1]


def replace_code(path: Path, source: str, functions: Functions) -> bool:
    """Give the function that is another one in ``source`` its new code. Return whether that was possible."""
    codes, replaced = [compile(source, str(path), "exec", dont_inherit=True)], False
    while codes:
        code = codes.pop()
        for function in functions.get((code.co_qualname, code.co_firstlineno), []):
            if function.__code__ != code:
                try:
                    function.__code__, replaced = code, True
                except ValueError:  # it reads other variables of the function around it
                    return False
        if not code.co_flags & 2:  # of a module or a class
            codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return replaced
