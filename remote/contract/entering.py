"""Enter a run on its box: a shell or a command in its directory with its environment, or its terminal.

The agent is started as `agent-<hash>.pyz enter WORD`, where the word is an EnterRequest (`Request.to_word`), so that
stdin is free for the command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Optional, Tuple


@dataclass(frozen=True)
class PlaceRequest:
    """Ask where a run is; without a job, where the project is. With `port`, ask whether a program listens there."""

    op: ClassVar[str] = "place"
    job: str = ""
    run_id: Optional[str] = None
    port: Optional[int] = field(default=None, metadata={"least": 1})  # of 127.0.0.1


@dataclass(frozen=True)
class PlaceReply:
    """Where a run or a project is, and what can be done there."""

    path: str  # the directory in which a shell starts
    run_id: str = ""
    has_terminal: bool = False  # whether tmux shows the run
    listens: Optional[bool] = None  # whether a program listens at `port`; None if that was not asked


@dataclass(frozen=True)
class EnterRequest:
    """Run a command in a run's directory, with its environment; without a job, in that of the project.

    An empty command stands for the user's shell. With `attach`, show the run's terminal instead.
    """

    op: ClassVar[str] = "enter"
    job: str = ""
    run_id: Optional[str] = None
    command: Tuple[str, ...] = ()
    attach: bool = False
