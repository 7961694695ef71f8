"""Where the time of a figure goes that misses its limit, and what would reduce it: by the name of the figure."""

from __future__ import annotations

LEVERS: dict[str, str] = {}
