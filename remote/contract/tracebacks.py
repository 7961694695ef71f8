"""Find the error that ended a program in what it printed: Python tracebacks, as programs and launchers show them.

A traceback may have a prefix on each of its lines (`[rank1]: `), stand in a box (rich), be decorated (loguru), or be
part of a report (torchrun). A launcher (torchrun, accelerate) prints one of its own after that of the program, which
only says that the program failed.
"""

from __future__ import annotations

import re
import signal
from typing import List, NamedTuple, Optional, Sequence, Tuple

FIRST_LINE = "Traceback (most recent call last):"
MAX_TEXT = 1 << 17  # characters of a text that are searched, from its end
MAX_TRACEBACKS = 100  # the last ones
MAX_LINES = 2000  # of one traceback
MAX_LINE = 2000  # characters of a line of a traceback that are looked at
INTERLEAVED = 20  # lines of other processes that may follow the first line of a traceback
MAX_WRAPPED = 20  # lines over which a box may have wrapped the message
NEAR_LINES = 300  # from the beginning of the traceback of a program to that of its launcher, or of another rank

_HEADER = "Traceback (most recent call last)"
_BOX_BEFORE = re.compile(r"[\u2500\u2501-]{2,} $")
# The end of the line between two tracebacks.
_LED_TO = ("another exception occurred:", "direct cause of the following exception:")
_LAUNCHER = re.compile(
    r"[\w.]*\b(?:ChildFailedError|CalledProcessError|ProcessExitedException|SignalException|FailedJobError)\b"
)
# Exceptions of a rank after another one has ended.
_CONSEQUENCE = re.compile(
    r"Connection (?:closed|reset)|Broken pipe|remote process exited|NCCL communicator was aborted|Socket Timeout"
    r"|KeyboardInterrupt|wait timeout|store.{0,40}(?:closed|timeout)",
    re.IGNORECASE,
)
_RANK = re.compile(r"(?:rank|default)(\d{1,6})\]?:|^\[?(\d{1,6})(?:,\d{1,6})?\]?(?:<\w+>)?:")
_ROOT_CAUSE = re.compile(
    r"Root Cause \(first observed failure\):.{0,400}?rank\s*: (\d{1,6}).{0,200}?exitcode\s*: (-?\d{1,3})", re.DOTALL
)

_CHILD = re.compile(
    r"returned non-zero exit status (?P<status>\d{1,3})|died with <Signals\.\w{1,20}: (?P<signal>\d{1,2})>"
    r"|terminated with signal (?P<name>SIG[A-Z0-9]{1,10})"
)


class Traceback(NamedTuple):
    """One traceback in a text."""

    begin: int  # the offset of its first line
    exception: str  # its last line: `ValueError: x`
    prefix: str = ""  # what each of its lines begins with
    is_chained: bool = False  # whether the traceback before it led to it


class Cause(NamedTuple):
    """Why a program failed, as far as its output tells."""

    chain: Tuple[Traceback, ...] = ()  # the traceback that counts, then the one that led to it, and so on
    launcher: Optional[Traceback] = None  # of the launcher, if that is the last one
    exit_code: Optional[int] = None  # of the process that failed first, if the launcher reports it; negative: a signal
    rank: Optional[int] = None  # of that process


def find_cause(text: str) -> Cause:
    """Return why the program that printed `text` failed.

    That is the last traceback. If a launcher printed it, it is the one before: of the rank that failed first, if the
    launcher names it, else the first one that is not the consequence of another rank's end.
    """
    skipped = max(0, len(text) - MAX_TEXT)
    found = [each._replace(begin=each.begin + skipped) for each in _find_all(text[skipped:])]
    if not found:
        return Cause()
    if not _LAUNCHER.match(found[-1].exception):
        return Cause(_chain(found, len(found) - 1))
    report = _ROOT_CAUSE.search(text, found[-1].begin)
    rank, code = (int(report[1]), int(report[2])) if report else (None, _exit_code(found[-1].exception))
    chosen = _choose(found, text, rank)
    return Cause(_chain(found, chosen) if chosen is not None else (), found[-1], code, rank)


def _exit_code(exception: str) -> Optional[int]:
    """Return the exit code of a child process that a launcher's exception reports; None if it reports none."""
    match = _CHILD.search(exception)
    if not match:
        return None
    if match["name"]:
        return -getattr(signal, match["name"], 0) or None
    return int(match["status"]) if match["status"] else -int(match["signal"])


def _choose(found: Sequence[Traceback], text: str, rank: Optional[int]) -> Optional[int]:
    """Return the index of the traceback that a launcher's one, the last, is about; None if there is none."""
    candidates: List[int] = []
    after = found[-1].begin
    for index in range(len(found) - 2, -1, -1):
        if text.count("\n", found[index].begin, after) > NEAR_LINES:
            break  # it was handled, long before
        after = found[index].begin
        if not _LAUNCHER.match(found[index].exception) and not found[index + 1].is_chained:
            candidates.insert(0, index)
    direct = [index for index in candidates if not _CONSEQUENCE.search(found[index].exception)]
    of_rank = [index for index in direct if rank is not None and _rank_of(found[index]) == rank]
    return next(iter([*of_rank, *direct, *candidates]), None)


def _rank_of(traceback: Traceback) -> Optional[int]:
    match = _RANK.search(traceback.prefix)
    return int(match[1] or match[2]) if match else None


def _chain(found: Sequence[Traceback], index: int) -> Tuple[Traceback, ...]:
    chain = [found[index]]
    while chain[-1].is_chained:
        index = next((at for at in range(index - 1, -1, -1) if found[at].prefix == chain[-1].prefix), -1)
        if index < 0:
            break
        chain.append(found[index])
    return tuple(chain)


# --- single tracebacks ----------------------------------------------------------------------------------


def _find_all(text: str) -> List[Traceback]:
    lines, offsets, offset = [], [], 0
    for line in text.splitlines(True):
        lines.append(line.rstrip("\r\n")[:MAX_LINE])
        offsets.append(offset)
        offset += len(line)
    headers = [index for index, line in enumerate(lines) if _HEADER in line][-MAX_TRACEBACKS:]
    found = []
    for index in headers:
        prefix, exception = _read(lines, index)
        if exception:
            begin = offsets[index] + len(prefix) if prefix else _begin(lines[index], offsets[index])
            found.append(Traceback(begin, exception, prefix, _is_chained(lines, index, prefix)))
    return found


def _begin(line: str, offset: int) -> int:
    at = line.find(FIRST_LINE)
    return offset + at if at >= 0 else offset


def _read(lines: Sequence[str], index: int) -> Tuple[str, str]:
    """Return the prefix of the traceback whose first line is at `index`, and its exception; "" if that is missing."""
    line, following = lines[index], lines[index + 1 : index + 1 + MAX_LINES]
    before, _, after = line.partition(_HEADER)
    box = _BOX_BEFORE.search(before)
    if box:
        corner = len(before[: box.start()].rstrip("\u2500\u2501-")) - 1
        prefix = before[: max(0, corner)]
        return prefix, _after_box(_of_prefix(following, prefix))
    if not after.startswith(":"):
        return "", ""
    if before.endswith("+ Exception Group "):
        before = before[: -len("+ Exception Group ")] + "| "
    has_prefix = before.strip() and any(each.startswith(before + "  ") for each in following[:INTERLEAVED])
    prefix = before if has_prefix else ""
    body = _of_prefix(following, prefix)
    stack = next((each for each in body if each.strip()), "")
    header_indent = 0 if prefix else _indent(line)
    return prefix, _after_stack(body, min(header_indent, _indent(stack) - 1))


def _of_prefix(lines: Sequence[str], prefix: str) -> List[str]:
    """Return the lines with the prefix, without it: those of another rank may stand between them."""
    start = prefix.rstrip()
    return [line[len(prefix) :] for line in lines if line.startswith(start)] if prefix else list(lines)


def _after_stack(lines: Sequence[str], indent: int) -> str:
    """Return the first line that is indented by at most `indent`: it follows the stack.

    Before a line of the stack, it is ordinary output that came in between (`train | tee log`).
    """
    for line, following in zip(lines, [*lines[1:], ""]):
        if _HEADER in line:
            return ""
        is_inside = _indent(following) > max(0, indent) and following.lstrip().startswith('File "')
        if is_inside or not line.strip() or _indent(line) > max(0, indent):
            continue
        if not line.startswith(("[orch] ", "> File ")):
            return line.strip()
    return ""


def _after_box(lines: Sequence[str]) -> str:
    """Return the message below a box, which may be wrapped as the box is."""
    end = next((at for at, line in enumerate(lines) if line[:1] not in ("\u2502", "|", "\u2503")), len(lines))
    if end == len(lines) or _HEADER in lines[end]:
        return ""
    width = len(lines[end].rstrip())
    message: List[str] = []
    for line in lines[end + 1 : end + 1 + MAX_WRAPPED]:
        if not line.strip():
            break
        message.append(line.strip())
        if len(line) < width * 2 // 3:  # a wrapped line is nearly as wide as the box
            break
    return " ".join(message)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_chained(lines: Sequence[str], index: int, prefix: str) -> bool:
    start = prefix.rstrip()
    for line in reversed(lines[max(0, index - 50) : index]):
        if prefix and not line.startswith(start):
            continue  # of another rank
        text = line[len(prefix) :].strip() if prefix else line.strip()
        if text:
            return text.endswith(_LED_TO)
    return False
