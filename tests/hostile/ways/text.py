"""Text that is hostile to a terminal or to layout code."""

from __future__ import annotations

from typing import Any

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
ESCAPES = f"{CLIPBOARD}\x1b[2J\x1b[H\x1b[35;7m\x9b31m\x9d0;title\x9c\r\u202ered\u2066\u200b\x00\x7f\x08"
MARKUP = "[/x][bold]loud[/bold][link=file:///etc]here[/link]"
HARMFUL = ESCAPES + MARKUP
CAME_THROUGH = r"\x1b\[35;7m|\x1b\]52"  # orch itself prints nothing like it
LONG = 7_000_000  # characters of one string


def everywhere(value: Any, text: str, kept: tuple[str, ...] = ("schema", "job", "run_id", "state", "path")) -> Any:
    """Replace every string in `value` by `text`, except in the keys `kept`, so that it still looks like an answer."""
    if isinstance(value, str):
        return text
    if isinstance(value, list):
        return [everywhere(item, text, kept) for item in value]
    if isinstance(value, dict):
        return {
            key: item if key in kept and isinstance(item, str) else everywhere(item, text, kept)
            for key, item in value.items()
        }
    return value


def numbers(value: Any, number: Any) -> Any:
    """Replace every number in `value` by `number`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number
    if isinstance(value, list):
        return [numbers(item, number) for item in value]
    if isinstance(value, dict):
        return {key: numbers(item, number) for key, item in value.items()}
    return value
