"""Everything that a person or a program sees: text, tables and JSON."""
