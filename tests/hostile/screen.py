"""What a command wrote to its terminal, and what a person reads there."""

from __future__ import annotations

import re
from dataclasses import dataclass

STYLE = r"\x1b\[[0-9;]{0,12}m"
CURSOR = r"\x1b\[\?25[lh]"  # hidden, shown
# How rich erases what it redraws, the line of the cursor and each one above it; and how orch redraws the last lines of
# a log. Nothing else may erase a line, so a part of this sequence in the text of a box is harmful.
TAKEN_BACK = r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*|\r(?:\x1b\[1A\x1b\[2K)+|\r(?:\x1b\[\d+A)?\x1b\[J"
UP = re.compile(r"\x1b\[(\d+)A")
OWN = re.compile(f"{STYLE}|{CURSOR}|(?P<taken_back>{TAKEN_BACK})")


@dataclass(frozen=True)
class Shown:
    code: int | None  # None: still running
    output: bytes

    @property
    def text(self) -> str:
        """Return the text that a person sees at the end."""
        seen, at = "", 0
        written = self.output.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
        for found in OWN.finditer(written):
            seen += written[at : found.start()]
            at = found.end()
            if found["taken_back"]:
                lines = seen.split("\n")
                seen = "".join(f"{line}\n" for line in lines[: -1 - sum(map(int, UP.findall(found[0])))])
        return seen + written[at:]

    def harm(self, kept: str = "") -> list[str]:
        """Return control sequences and hidden characters, also those in erased text.

        `kept` lists allowed characters: a log keeps its carriage returns.
        """
        written = OWN.sub("", self.output.decode("utf-8", "surrogateescape").replace("\r\n", "\n"))
        found = re.findall(r"[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", written)
        found += re.findall("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]", written)
        return sorted({ascii(character) for character in found if character not in kept})
