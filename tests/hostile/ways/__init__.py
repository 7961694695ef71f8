"""Every way in which the hostile box answers wrongly."""

from __future__ import annotations

from tests.hostile.ways import errors, files, launches, replies, reports, streams

OVER_SSH = (*replies.OVER_SSH, *streams.OVER_SSH, *files.OVER_SSH, *launches.OVER_SSH)
WAYS = (*replies.WAYS, *errors.WAYS, *reports.WAYS, *streams.WAYS, *files.WAYS, *launches.WAYS, *OVER_SSH)
