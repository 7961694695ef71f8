"""Work out, without running a script, which texts its expressions stand for: paths that it writes, defaults it has."""

from __future__ import annotations

import ast
import posixpath
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping

Value = str | int | float | bool | None
UNKNOWN = "*"  # stands for a part of a path that is known only when the script runs

_DEPTH = 12  # how many names are followed
_NAMESPACE = re.compile(r"(?i)(?:\w*_)?(?:args?|opts?|options?|flags?|cfg|conf|config|params|hparams)")
_SAME_PATH = {"Path", "PurePath", "str", "fspath", "expanduser", "abspath", "realpath", "normpath"}
_SAME_OBJECT = {"resolve", "absolute", "expanduser", "as_posix", "strip"}


def parse(text: str) -> ast.Module | None:
    """Return the module that `text` is the source of; None if it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in texts, which are not ours
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def name_of(node: ast.AST) -> str:
    """Return the dotted name of an expression, such as `torch.save`; "" if it is not a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return "." + ".".join(reversed(parts)) if parts else ""
    return ".".join((node.id, *reversed(parts)))


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call of a module with the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield name_of(node.func), node


def argument(call: ast.Call, position: int | None, *names: str) -> ast.expr | None:
    """Return the argument of a call by its names or, if it has none of them, by its position."""
    for keyword in call.keywords:
        if keyword.arg in names:
            return keyword.value
    plain = [each for each in call.args if not isinstance(each, ast.Starred)]
    return plain[position] if position is not None and position < len(plain) else None


def constant(node: ast.AST | None) -> Value:
    """Return the value of a constant, or of one with a sign; None for everything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        value = node.operand.value
        return -value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool)):
        return node.value
    return None


class Values:
    """The values of names in some modules, as far as they are constant, and of the options of a script.

    Args:
        trees: The modules.
        options: The values of the options, by the names that the script uses for them.
    """

    def __init__(self, trees: Iterable[ast.Module], options: Mapping[str, Value]) -> None:
        self._options = options
        self._assigned: dict[str, ast.expr | None] = {}  # None: assigned several times
        defaults: dict[str, ast.expr] = {}
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                    name = node.targets[0].id
                    self._assigned[name] = None if name in self._assigned else node.value
                elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    named = (*node.args.posonlyargs, *node.args.args)
                    with_default = named[len(named) - len(node.args.defaults) :]
                    pairs = zip(with_default, node.args.defaults, strict=True)
                    defaults.update({each.arg: value for each, value in pairs})
        self._assigned = {**defaults, **self._assigned}

    def constant(self, node: ast.AST | None) -> Value:
        """Return the value of a constant, or of a name that is assigned once to one; None if it is not known."""
        if isinstance(node, ast.Name):
            node = self._assigned.get(node.id)
        return constant(node)

    def text(self, node: ast.AST | None, depth: int = 0) -> str | None:
        """Return the text that an expression stands for, with UNKNOWN for unknown parts; None if nothing is known."""
        if node is None or depth > _DEPTH:
            return None
        value = constant(node)
        if value is not None:
            return str(value)
        if isinstance(node, ast.JoinedStr):
            return "".join(self._part(each, depth) for each in node.values)
        if isinstance(node, ast.FormattedValue):
            return self.text(node.value, depth + 1)
        if isinstance(node, ast.Name):
            if node.id in self._options:
                return self._option(node.id)
            return self.text(self._assigned.get(node.id), depth + 1)
        if isinstance(node, ast.Attribute):
            return self._option(node.attr) if _NAMESPACE.fullmatch(name_of(node.value).rpartition(".")[2]) else None
        if isinstance(node, ast.Subscript):
            key = constant(node.slice)
            return self._option(key) if isinstance(key, str) else None
        if isinstance(node, ast.BinOp):
            return self._operation(node, depth)
        if isinstance(node, ast.BoolOp):
            return next((text for each in node.values if (text := self.text(each, depth + 1))), None)
        return self._call(node, depth) if isinstance(node, ast.Call) else None

    def _option(self, name: str) -> str | None:
        value = self._options.get(name)
        return None if value is None else str(value)

    def _part(self, node: ast.AST, depth: int) -> str:
        text = self.text(node, depth + 1)
        return UNKNOWN if text is None else text

    def _operation(self, node: ast.BinOp, depth: int) -> str | None:
        if isinstance(node.op, ast.Mod):
            text = self.text(node.left, depth + 1)
            return re.sub(r"%[-0-9.]*[a-zA-Z]", UNKNOWN, text) if text is not None else None
        left, right = self._part(node.left, depth), self._part(node.right, depth)
        if isinstance(node.op, ast.Add):
            return left + right
        return posixpath.join(left, right) if isinstance(node.op, ast.Div) else None

    def _call(self, node: ast.Call, depth: int) -> str | None:
        name = name_of(node.func).rpartition(".")[2]
        if name in ("join", "Path", "PurePath", "joinpath") and node.args:
            before = [node.func.value] if name == "joinpath" and isinstance(node.func, ast.Attribute) else []
            return posixpath.join(*(self._part(each, depth) for each in (*before, *node.args)))
        if name in _SAME_PATH and node.args:
            return self.text(node.args[0], depth + 1)
        if isinstance(node.func, ast.Attribute):
            if name == "format":
                text = self.text(node.func.value, depth + 1)
                return re.sub(r"\{[^}]*\}", UNKNOWN, text) if text is not None else None
            if name in _SAME_OBJECT:
                return self.text(node.func.value, depth + 1)
        return None
