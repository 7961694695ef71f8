"""Helpers for this machine's processes, signals, threads, time limits, streams and cache; no project logic."""
