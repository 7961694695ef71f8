"""Convert the values of arguments and options: texts, numbers and paths.

typer converts them by pydantic. To import that for a text takes as long as to import the rest of typer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import BadParameter

if TYPE_CHECKING:
    from typer._click.core import Context
    from typer.core import _TyperParameter


class PlainValue:
    """The conversion of one parameter: what typer builds with pydantic unless a parameter has it already."""

    def __init__(self, convert: Callable[[Any], Any], least: float | None) -> None:
        self._convert, self._least = convert, least

    def coerce(self, value: Any, param: _TyperParameter, ctx: Context) -> Any:
        """Return the value of the parameter for what is on the command line; None or () if nothing is there."""
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        try:
            found = self._convert(value)
        except ValueError:
            raise BadParameter(f"{value!r} is not a whole number", ctx=ctx, param=param) from None
        if self._least is not None and found < self._least:
            raise BadParameter(f"{value} is less than {self._least:g}", ctx=ctx, param=param)
        if isinstance(found, int) and found > MAX_INT:
            raise BadParameter(f"{value} is too large", ctx=ctx, param=param)
        if value == "" or (isinstance(found, list) and "" in found):  # as of a variable that is not set
            raise BadParameter("it must not be empty", ctx=ctx, param=param)
        return found


MAX_INT = 2**63 - 1  # a box would take a larger one for none
CONVERSIONS: dict[Any, Callable[[Any], Any]] = {str: str, list[str]: list, int: int, bool: bool, Path: Path}


def plain(params: list[Any]) -> list[Any]:
    """Let the parameters of a command be converted without pydantic, and return them. Other types stay as they are."""
    for param in params:
        described = getattr(param, "type_descriptor", None)  # typer before 0.29 has none, and does not use pydantic
        if described is not None and described.annotation in CONVERSIONS:
            convert = CONVERSIONS[described.annotation]
            param._runtime_param = PlainValue(convert, described.parameter_info.min)
    return params
