"""Array caches and work in several processes, for all other packages here."""
