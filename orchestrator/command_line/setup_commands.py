"""Prepare: write a jobs.toml, print its schema, check the hosts, trust and disconnect them."""

from __future__ import annotations

from pathlib import Path

import typer

from orchestrator.command_line import command_options as options
from orchestrator.command_line.command_frame import command, opened, reported
from orchestrator.command_line.registry import add_command


@add_command("init", "orch init")
def init_command() -> None:
    """Look at the code here, and write a jobs.toml to start from.

    Reads the files of the current directory and runs none of them: scripts and their options, the README, the lists of
    packages. In a git repository it also adds `.orch/` and `results/` to .gitignore, unless they are ignored already.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen:
        from orchestrator.commands import init

        screen.initialised(init.write_spec(Path()))


@add_command("schema", "orch schema jobs > .orch/jobs.schema.json", "orch schema documents")
def schema_command(of: options.SchemaName) -> None:
    """Print a JSON Schema.

    That of jobs.toml lets an editor complete and check it: `orch init` writes it, and names it in the first line.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen:
        import json

        from orchestrator.ui.schemas import schema

        screen.terminal.write(json.dumps(schema(of), indent=2))


@add_command("doctor", "orch doctor", "orch doctor gpu1")
def doctor_command(context: typer.Context, host: options.SomeHost = None, as_json: options.Json = False) -> None:
    """Check this machine and the hosts.

    Shows the result of each check and how to fix each problem. Exit code 3 if a host cannot be used, 4 if another
    check failed.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import doctor

        checks = doctor.examine(project, host)
        screen.examined(checks)
        for checked in checks:
            if checked.check.status == "fail":
                raise typer.Exit(checked.check.exit_code)


@add_command("disconnect", "orch disconnect", "orch disconnect gpu1")
def disconnect_command(context: typer.Context, host: options.SomeHost = None) -> None:
    """Close the connections to the hosts that stay open between commands.

    A connection stays open for 10 minutes after its last use, so that the next command needs no login. Runs are not
    affected.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen, opened(context, screen) as project:
        from orchestrator.commands import disconnect

        screen.disconnected(disconnect.disconnect(project, host))


@add_command("trust", "orch trust gpu1", "orch trust gpu1 --fingerprint SHA256:...")
def trust_command(context: typer.Context, host: options.AHost, fingerprint: options.Fingerprint = None) -> None:
    """Pin a host's SSH key.

    Shows the fingerprint of the key, asks whether to trust it, and writes the key to known_hosts.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen, opened(context, screen) as project:
        from orchestrator.commands import trust
        from orchestrator.errors import HostError

        def confirm(key: trust.OfferedKey) -> bool:
            if fingerprint:
                return key.fingerprint == fingerprint
            screen.host_key(host, key)
            if key.is_pinned:
                return True
            ask = screen.terminal.confirmed
            return ask("Trust this host key?") and (not key.replaces or ask("Replace the key in known_hosts?"))

        result = trust.trust(project, host, confirm)
        screen.trusted(result)
        if result.file is None:
            raise typer.Exit(HostError.exit_code)
