"""The box's side of orch: Python 3.8 and its standard library, shipped to every box."""
