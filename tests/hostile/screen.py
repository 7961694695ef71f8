"""What a command has written to its terminal, and what stands there for a person to read."""

from __future__ import annotations

import re
from dataclasses import dataclass

STYLE = r"\x1b\[[0-9;]{0,12}m"
CURSOR = r"\x1b\[\?25[lh]"  # hidden, shown
# How rich takes back what it redraws: the line that the cursor is on, and each one above it. A line cannot be taken
# back in any other way, so that a piece of it in what a box says is harm.
TAKEN_BACK = r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*|\r(?:\x1b\[1A\x1b\[2K)+"
UP = "\x1b[1A"
OWN = re.compile(f"{STYLE}|{CURSOR}|(?P<taken_back>{TAKEN_BACK})")


@dataclass(frozen=True)
class Shown:
    code: int | None  # None: it did not end
    output: bytes

    @property
    def text(self) -> str:
        """What a person reads in the end."""
        seen, at = "", 0
        written = self.output.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
        for found in OWN.finditer(written):
            seen += written[at : found.start()]
            at = found.end()
            if found["taken_back"]:
                lines = seen.split("\n")
                seen = "".join(f"{line}\n" for line in lines[: -1 - found[0].count(UP)])
        return seen + written[at:]

    def harm(self, kept: str = "") -> list[str]:
        """What a terminal would act upon, or a person would not see as it is; also in what was taken back again.

        `kept` is what may be there all the same: a log is shown with its carriage returns.
        """
        written = OWN.sub("", self.output.decode("utf-8", "surrogateescape").replace("\r\n", "\n"))
        found = re.findall(r"[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", written)
        found += re.findall("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]", written)
        return sorted({ascii(character) for character in found if character not in kept})
