"""Where the time of a figure goes that misses its limit, and what would reduce it: by the name of the figure."""

from __future__ import annotations

_STARTS = (
    "Python starts here and on the box, and imports two thirds of the time (typer, and the dataclasses of the contract,"
    " of which a class takes half a millisecond); next: an agent that answers several requests of one command, and"
    " dataclasses without a generated `__repr__` and `__eq__` (12 % of an agent's start, 5 % of a command's)"
)
_LAUNCH = (
    "two requests (facts, launch), then supervisor, shim and job start one after the other: with the command itself,"
    " five Pythons in a row, where the script starts one; next: an agent that answers both requests, and a shim that is"
    " forked from its supervisor"
)
_RETURNS = f"{_LAUNCH}; and the command returns 0.3 s after the last process has started, which the script does not"
_SYNC = (
    "states, list of files and rsync are asked for one after the other, and each run gets records of its own; next:"
    " states and lists in one request, and one record for all runs of a copy"
)
_FILES = (
    "the list of files is made, sent and checked, and a directory is put in place only when it is complete; next: rsync"
    " while the list still comes"
)
_MANY = (
    "the files of each run are read one after the other, here and on the box; next: a report of each ended run, written"
    " once when it ends"
)

LEVERS: dict[str, str] = {
    "orch status on this machine": _STARTS,
    "launch: both jobs run, cold": _LAUNCH,
    "launch: both jobs run, warm": _LAUNCH,
    "launch: command returns, cold": _RETURNS,
    "launch: remembered rehearsal": "the box looks for the record of each rehearsal",
    "status, cold": _STARTS,
    "status, warm": _STARTS,
    "exchanges: launch": "the laptop judges the facts before it launches; next: an agent that answers both requests",
    "tail: ends after its job": "the end is read from the state that the supervisor writes after the last output",
    "tail: a line is shown": "the line passes the shim, the log and the agent",
    "tail: 1,000 MB of log": "lines that are redrawn are found in Python; next: pass on what has no carriage return",
    "sync: two runs of 1 MB": _SYNC,
    "sync: 1,000 runs of 1.1 MB": _SYNC,
    "sync: 5,000 files": _FILES,
    "sync: one file of 500 MB": _FILES,
    "sync: nothing new": _STARTS,
    "status: 1,000 runs": _MANY,
    "runs: 1,000 runs": _MANY,
}
