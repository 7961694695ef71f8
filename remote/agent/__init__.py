"""Answer the requests of a laptop, one process for each."""
