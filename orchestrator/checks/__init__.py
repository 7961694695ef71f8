"""Pure functions that decide from the facts of a box whether a launch can succeed."""
