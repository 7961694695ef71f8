"""The supervisor of one run: starts its worker, monitors it, restarts it."""
