"""The commands of orch, each from the parsed arguments to its result. They print nothing; `ui` shows the results."""
