"""The SSH transport: configuration, host keys, login, commands, and file copies with rsync."""
