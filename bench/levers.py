"""Where the time of a figure goes that misses its limit, and what would reduce it: by the name of the figure."""

from __future__ import annotations

_START = "imports (typer, rich, dataclasses) come before the first byte to the box: import less, and connect meanwhile"
_LAUNCH = (
    "three exchanges in turn (facts, launch, confirmation), each with the start of an agent, after the imports and git;"
    " ask for the facts and launch in one, and connect during the imports"
)
_CONFIRM = "the last exchange waits for a heartbeat: return when the box says that the processes have lived for 300 ms"
_TRANSFERS = (
    "each run has its own list of files, rsync and second list, one after the other; list all runs of a host in one"
    " exchange, and copy them with one rsync"
)
_LISTS = "two lists of files around the rsync, each with the start of an agent, after the imports; verify by checksum"
_POLL = "the agent looks for an end and for new bytes ten times a second: wait for events (pidfd, inotify)"
_FOLD = (
    "every line is folded in Python, about 10 MB/s, and a compressed part is unpacked from its beginning for each 8 MB;"
    " pass bytes through that redraw nothing, and unpack a part once"
)

LEVERS: dict[str, str] = {
    "orch status on this machine": f"{_START}; the agent's own start is a third of it",
    "launch: both jobs run, cold": _LAUNCH,
    "launch: both jobs run, warm": _LAUNCH,
    "launch: command returns, cold": f"{_LAUNCH}; {_CONFIRM}",
    "launch: remembered rehearsal": "the box looks for the record of each rehearsal",
    "status, cold": _START,
    "status, warm": f"{_START}; then the start of the agent",
    "exchanges: launch": _LAUNCH,
    "exchanges: sync of two new runs": _TRANSFERS,
    "tail: ends after its job": _POLL,
    "tail: a line is shown": _POLL,
    "tail: 1,000 MB of log": _FOLD,
    "sync: two runs of 1 MB": _TRANSFERS,
    "sync: 1,000 runs of 1.1 MB": _TRANSFERS,
    "sync: 5,000 files": _LISTS,
    "sync: one file of 500 MB": _LISTS,
    "sync: nothing new": f"no exchange is left; {_START}",
    "status: 1,000 runs": "the records and copies of all runs are read, one file after the other",
    "runs: 1,000 runs": "the records and copies of all runs are read, one file after the other",
}
