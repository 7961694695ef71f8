"""The parent of one worker: writes its log and records its exit code."""
