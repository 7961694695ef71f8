"""Read options that a script declares as the parameters of functions, or the fields of classes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from orchestrator.code.command_line import CommandLine, Option
from orchestrator.code.script_values import Value, argument, constant, name_of

# Of transformers.TrainingArguments; its defaults are those that matter here.
_TRAINING_ARGUMENTS: dict[str, Value] = {
    "output_dir": "trainer_output",
    "max_steps": -1,
    "num_train_epochs": 3,
    "resume_from_checkpoint": None,
    "save_steps": 500,
    "save_total_limit": None,
    "logging_steps": 500,
    "seed": 42,
}
_TRAINING_FLAGS = ("do_train", "do_eval", "overwrite_output_dir")


def of_functions(tree: ast.Module, called: Sequence[tuple[str, ast.Call]]) -> CommandLine | None:
    """Read the commands of click, typer and fire, which are functions."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    decorated = {
        name: [each.func if isinstance(each, ast.Call) else each for each in function.decorator_list]
        for name, function in functions.items()
    }
    clicks = [name for name, found in decorated.items() if any(name_of(each).endswith("command") for each in found)]
    options = [
        option
        for name in clicks
        for each in functions[name].decorator_list
        if isinstance(each, ast.Call) and (option := _click(each))
    ]
    if options:
        return CommandLine("click", tuple(options), True, tuple(clicks) if len(clicks) > 1 else ())
    for runner, separator, kind in (("typer.run", " ", "typer"), ("Fire", "=", "fire"), ("run", " ", "typer")):
        for name, call in called:
            target = name_of(call.args[0]) if call.args else ""
            if target in functions and (name == runner or name.endswith(f"{runner}") and kind == "fire"):
                return CommandLine(kind, tuple(_parameters(functions[target], separator)), True)
    if clicks and any(name.endswith("Typer") for name, _ in called):
        chosen = next((name for name in clicks if re.search("train|fit|main", name)), clicks[0])
        subcommands = tuple(name.replace("_", "-") for name in clicks) if len(clicks) > 1 else ()
        return CommandLine("typer", tuple(_parameters(functions[chosen], " ")), True, subcommands)
    return CommandLine("click", (), True, tuple(clicks) if len(clicks) > 1 else ()) if clicks else None


def _click(call: ast.Call) -> Option | None:
    kind = name_of(call.func).rpartition(".")[2]
    names = [name for each in call.args if isinstance(name := constant(each), str)]
    if kind not in ("option", "argument") or not names:
        return None
    long = next((name for name in names if name.startswith("--")), names[0])
    is_flag = constant(argument(call, None, "is_flag")) is True or "/" in long
    default = constant(argument(call, None, "default"))
    required = constant(argument(call, None, "required"))
    has_default = argument(call, None, "default") is not None
    is_required = required is True if kind == "option" else not has_default and required is not False
    long = long.partition("/")[0]
    key = long.lstrip("-").replace("-", "_")
    return Option(long, key, default, is_flag, is_required, other_names=tuple(n for n in names if n != long))


def _parameters(function: ast.FunctionDef, separator: str) -> Iterator[Option]:
    """Yield an option for each parameter, as typer (separator " ") and fire ("=") do."""
    named = (*function.args.posonlyargs, *function.args.args)
    missing = [None] * (len(named) - len(function.args.defaults))
    pairs = [
        *zip(named, [*missing, *function.args.defaults], strict=True),
        *zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True),
    ]
    for parameter, default in pairs:
        declared = name_of(default.func).rpartition(".")[2] if isinstance(default, ast.Call) else ""
        if isinstance(default, ast.Call):
            default = default.args[0] if default.args else None
        name = parameter.arg.replace("_", "-") if separator == " " else parameter.arg
        is_required = default is None or (isinstance(default, ast.Constant) and default.value is ...)
        is_positional = declared == "Argument" or (is_required and declared != "Option")
        value = constant(default)
        is_flag = isinstance(value, bool) and separator == " "
        yield Option(
            name if is_positional else f"--{name}",
            parameter.arg,
            value,
            is_flag,
            is_required,
            " " if is_positional else separator,
        )


def of_dataclasses(
    trees: Sequence[ast.Module], called: Sequence[tuple[str, ast.Call]], reader: str, kind: str
) -> CommandLine:
    """Return the options that are the fields of dataclasses.

    Args:
        trees: The module of the script, then those that it imports.
        called: All calls in them, with the names of what is called.
        reader: The name of the function that is given the classes.
        kind: The kind of the command line.
    """
    classes = {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    named = {
        name.rpartition(".")[2]
        for function, call in called
        if function.rpartition(".")[2] == reader
        for node in ast.walk(call)
        if (name := name_of(node))
    }
    found: list[Option] = []
    for name in sorted(named):
        bases = [name_of(base).rpartition(".")[2] for base in classes[name].bases] if name in classes else [name]
        if any(base.endswith(("TrainingArguments", "Config")) and base not in classes for base in bases):
            found += [Option(f"--{key}", key, default) for key, default in _TRAINING_ARGUMENTS.items()]
            found += [Option(f"--{key}", key, False, True) for key in _TRAINING_FLAGS]
        if name in classes:
            found += _fields(classes[name])
    return CommandLine(kind, tuple(found))


def _fields(declared: ast.ClassDef) -> Iterator[Option]:
    for node in declared.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        default: ast.expr | None = node.value
        has_default = default is not None
        if isinstance(default, ast.Call) and name_of(default.func).endswith("field"):
            has_default = any(each.arg in ("default", "default_factory") for each in default.keywords)
            default = argument(default, None, "default")
        value = constant(default)
        is_flag = isinstance(value, bool)
        yield Option(f"--{node.target.id}", node.target.id, value, is_flag, not has_default)
