"""Errors that end a worker on purpose.

    WorkerError           exit code   when
    |- BadInput               2       an option, the data or a file cannot be used
    |- NonFinite              1       the loss is NaN or infinite; the step was not taken
    `- TrainingStopped      143       SIGTERM; a checkpoint was written

Each message is one line for the user. Any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class WorkerError(Exception):
    """Base class of these errors."""

    exit_code: ClassVar[int] = 1


class BadInput(WorkerError):
    """An option, the data or a file cannot be used."""

    exit_code = 2


class NonFinite(WorkerError):
    """The loss or a metric is NaN or infinite."""

    exit_code = 1


class TrainingStopped(WorkerError):
    """The run was asked to stop."""

    exit_code = 143  # 128 + SIGTERM
