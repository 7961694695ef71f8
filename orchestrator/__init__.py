"""The laptop side of orch: read jobs.toml, launch jobs on GPU boxes, show and download their runs."""
