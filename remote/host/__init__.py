"""The machine that runs jobs: its processes, locks, GPUs and reboots."""
