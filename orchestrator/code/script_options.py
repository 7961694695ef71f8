"""Read the options of a Python script from its source: argparse, click, typer, absl, fire, dataclasses, globals."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import replace

from orchestrator.code.callable_options import of_dataclasses, of_functions
from orchestrator.code.command_line import CommandLine, Option
from orchestrator.code.script_values import Value, Values, argument, calls, constant, name_of

_FLAG_ACTIONS = {"store_true", "store_false", "store_const", "count", "help", "version"}
_LIGHTNING: dict[str, Value] = {
    "config": None,
    "ckpt_path": None,
    "trainer.max_steps": -1,
    "trainer.max_epochs": None,
    "trainer.limit_val_batches": None,
    "trainer.default_root_dir": None,
}


def read_command_line(trees: Sequence[ast.Module]) -> CommandLine:
    """Return the command line of a script. `trees` are its own module, and then those that it imports."""
    values = Values(trees, {})
    called = [(name, call) for tree in trees for name, call in calls(tree)]
    last = {name.rpartition(".")[2] for name, _ in called}
    if "LightningCLI" in last:
        return _lightning(called, values)
    if "HfArgumentParser" in last:
        return of_dataclasses(trees, called, "HfArgumentParser", "hf")
    found = tuple(_argparse(called, values))
    if found:
        subcommands = tuple(
            text
            for name, call in called
            if name.endswith(".add_parser") and (text := values.text(argument(call, 0, "name")))
        )
        is_complete = "parse_known_args" not in last and not any(
            name.endswith(("add_argparse_args", "add_config_arguments", "add_arguments")) for name, _ in called
        )
        return CommandLine("argparse", found, is_complete, subcommands)
    for name in ("tyro.cli", "pyrallis.wrap", "draccus.wrap", ".add_arguments", "parser.add_arguments"):
        if any(each == name for each, _ in called):
            return of_dataclasses(trees, called, name.rpartition(".")[2], "dataclass")
    own = trees[0]
    return (
        of_functions(own, called)
        or _absl(called, values)
        or _globals(own)
        or CommandLine("", (), not ({"argv", "ArgumentParser", "parse_args"} & _words(own)))
    )


def _words(tree: ast.Module) -> set[str]:
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return found | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


# --- argparse and absl -----------------------------------------------------------------------------------------


def _argparse(called: Sequence[tuple[str, ast.Call]], values: Values) -> Iterator[Option]:
    for function, call in called:
        if function.rpartition(".")[2] != "add_argument":
            continue
        names = [name for each in call.args if isinstance(name := constant(each), str)]
        long = next((name for name in names if name.startswith("--")), names[0] if names else "")
        if not long or long in ("--help", "--version"):
            continue
        key = constant(argument(call, None, "dest"))
        action = values.text(argument(call, None, "action")) or name_of(argument(call, None, "action") or call)
        default = values.constant(argument(call, None, "default"))
        is_flag = action in _FLAG_ACTIONS or action.endswith("BooleanOptionalAction")
        is_positional = not long.startswith("-")
        may_be_empty = constant(argument(call, None, "nargs")) in ("?", "*")
        yield Option(
            long,
            str(key) if key else long.lstrip("-").replace("-", "_"),
            default,
            is_flag,
            not may_be_empty and argument(call, None, "default") is None
            if is_positional
            else constant(argument(call, None, "required")) is True,
            other_names=tuple(name for name in names if name != long),
        )


def _absl(called: Sequence[tuple[str, ast.Call]], values: Values) -> CommandLine | None:
    found = []
    required = {
        name
        for function, call in called
        if function.endswith(("mark_flag_as_required", "mark_flags_as_required"))
        for node in ast.walk(call)
        if isinstance(name := constant(node), str)
    }
    for function, call in called:
        kind = function.rpartition(".")[2]
        name = constant(argument(call, 0, "name"))
        if not kind.startswith("DEFINE_") or not isinstance(name, str):
            continue
        is_required = name in required or constant(argument(call, None, "required")) is True
        default = values.constant(argument(call, 1, "default"))
        found.append(Option(f"--{name}", name, default, kind.startswith("DEFINE_bool"), is_required, "="))
    return CommandLine("absl", tuple(found), True) if found else None


# --- others ------------------------------------------------------------------------------------------------------


def _lightning(called: Sequence[tuple[str, ast.Call]], values: Values) -> CommandLine:
    options = tuple(Option(f"--{key}", key, default) for key, default in _LIGHTNING.items())
    (cli, *_) = [call for name, call in called if name.rpartition(".")[2] == "LightningCLI"]
    if argument(cli, 0, "model_class") is None:
        options = (replace(options[0], is_required=True), *options[1:])
    runs = argument(cli, None, "run")
    is_run = not (isinstance(runs, ast.Constant) and runs.value is False)
    options += tuple(_argparse(called, values))
    return CommandLine("lightning", options, subcommands=("fit", "validate", "test", "predict") if is_run else ())


def _globals(tree: ast.Module) -> CommandLine | None:
    """Read a script whose options are its global names, which an `exec(open(...).read())` at the top level changes."""
    found: dict[str, Option] = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and name_of(node.value.func) == "exec":
            return CommandLine("globals", tuple(found.values()), True) if found else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, constant(node.value)
            if value is not None:
                found[name] = Option(f"--{name}", name, value, separator="=")
    return None
