"""What laptop, box and worker agree on: messages, records, names of files."""
