"""The settings of a job or host that are one of a few words."""

from __future__ import annotations

from typing import Literal, Tuple, get_args

Launcher = Literal["nohup", "tmux"]
LAUNCHERS: Tuple[str, ...] = get_args(Launcher)
StopSignal = Literal["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"]
STOP_SIGNALS: Tuple[str, ...] = get_args(StopSignal)
Tool = Literal["uv", "pip"]
TOOLS: Tuple[str, ...] = get_args(Tool)
