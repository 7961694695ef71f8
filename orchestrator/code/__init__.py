"""The code that a launch ships: which files, what git knows of them, and the snapshot on the box."""
