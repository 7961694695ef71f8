"""Everything that a person or a program sees: options, help, text, tables and JSON."""
