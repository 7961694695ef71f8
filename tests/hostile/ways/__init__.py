"""Every way in which the hostile box answers wrongly."""

from __future__ import annotations

from tests.hostile.ways import errors, files, launches, replies, reports, streams

WAYS = (*replies.WAYS, *errors.WAYS, *reports.WAYS, *streams.WAYS, *files.WAYS, *launches.WAYS)
