"""A worker from its command line to its results."""
