"""Everything a worker ends with on purpose, as one tree:

    WorkerError           exit code   when
    |- BadInput               2       an option, the data or a file is not what it must be
    |- NonFinite              1       the loss is NaN or infinite; the model has not taken the step
    `- TrainingStopped              143       SIGTERM: what can be resumed has been written

Each message is one line for the user. Anything else that is raised is a defect and shows its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class WorkerError(Exception):
    exit_code: ClassVar[int] = 1


class BadInput(WorkerError):
    exit_code = 2


class NonFinite(WorkerError):
    exit_code = 1


class TrainingStopped(WorkerError):
    exit_code = 143  # 128 + SIGTERM
