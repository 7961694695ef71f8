"""jobs.toml: find the file, read it, check it, and resolve the secrets that it names."""
