"""The transformer and its attention."""
