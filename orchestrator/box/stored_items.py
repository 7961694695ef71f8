"""What a box says that it has stored, validated."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from remote.contract.paths import NAME, RUN_ID
from remote.contract.removals import REHEARSAL, RUN, StoredItem
from remote.contract.schema import Malformed, from_json

_RUN = re.compile(rf"({NAME.pattern})/({RUN_ID.pattern})")
_KEY = re.compile(r"[0-9a-f]{32,64}")


def read_items(listed: Iterable[Any]) -> tuple[StoredItem, ...]:
    """Return the well-formed items of a reply."""
    found = []
    for value in listed:
        with suppress(Malformed):
            item = from_json(StoredItem, value)
            if (_RUN if item.kind in (RUN, REHEARSAL) else _KEY).fullmatch(item.name):
                found.append(item)
    return tuple(found)
