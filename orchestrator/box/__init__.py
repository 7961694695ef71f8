"""A box and its runs as seen from the laptop: transports, the typed client, facts, copies of results."""
