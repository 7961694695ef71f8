"""Generate, pack and read the videos."""
