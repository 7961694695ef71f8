"""A result that knows how it is shown, as text and as a JSON document: for commands with a result of their own kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from orchestrator.ui.terminal import Terminal


class View(Protocol):
    """A result, and how it is shown. `kind` is that of its document."""

    kind: str

    def write(self, terminal: Terminal) -> None:
        """Write it as text. The text of boxes must be made safe to show."""

    def facts(self) -> Any:
        """Return the content of its document, one of the typed objects."""
