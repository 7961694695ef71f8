"""The command line: every command with its arguments, options and help, and the frame that all of them share."""
