"""The entry point of the script `orch`."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line.

    Ctrl-C during the imports ends the program without a traceback; `ending_cleanly` handles it from then on.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in the background of a shell
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from orchestrator import cli

    cli.main()


if __name__ == "__main__":
    main()
