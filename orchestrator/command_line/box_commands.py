"""Use a box as a person: ssh, exec, attach, forward."""

from __future__ import annotations

import typer

from orchestrator.command_line import command_options as options
from orchestrator.command_line.command_frame import exit_with_verdict, opened, reported
from orchestrator.command_line.registry import add_command


@add_command("ssh", "orch ssh train", "orch ssh gpu1")
def ssh_command(context: typer.Context, name: options.RunOrHost, on: options.On = None) -> None:
    """Open a shell in a run's directory with its environment, or in the project's directory on a host.

    The shell has the variables of the job, ORCH_* and the job's packages, but not its secrets. The exit code is that of
    the shell.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen, opened(context, screen) as project:
        from orchestrator.commands import on_box

        place = on_box.find(project, name, on)
        screen.entered(place)
        code = on_box.shell(place)
    raise typer.Exit(code)


@add_command(
    "exec",
    "orch exec train -- nvidia-smi",
    "orch exec train -- tar c results > results.tar",
    takes_words=True,
)
def exec_command(context: typer.Context, name: options.RunOrHost, words: options.Words, on: options.On = None) -> None:
    """Run a command in a run's directory with its environment.

    Passes stdin, stdout, stderr and the exit code on. The command gets no secrets, and a terminal only if stdin and
    stdout are one.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen, opened(context, screen) as project:
        from orchestrator.commands import on_box
        from orchestrator.errors import SpecError

        command = words[1:] if words[0] == "--" else words
        if not command or not command[0]:
            raise SpecError("there is no command", "orch exec RUN -- COMMAND")
        code = on_box.execute(on_box.find(project, name, on), command)
    raise typer.Exit(code)


@add_command("attach", "orch attach train")
def attach_command(context: typer.Context, run: options.OneRun, on: options.On = None) -> None:
    """Show the terminal of a run that tmux started. Keys are not passed on; Ctrl-B D leaves it.

    A run without a terminal has only its log, which is followed as by `orch tail`.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen, opened(context, screen) as project:
        from orchestrator.commands import on_box, watch

        target = on_box.target_of(project, run, on)
        place = on_box.place_of(project, target)
        if place.has_terminal:
            code = on_box.attach(place)
            raise typer.Exit(code)
        screen.without_terminal(place)
        last = screen.follow(watch.follow(project, target, 20, None, fold=True), run, True)
        if last:
            screen.ended([last])
            exit_with_verdict([last])


@add_command("forward", "orch forward train 6006", "orch forward gpu1 8889:8888")
def forward_command(
    context: typer.Context, name: options.RunOrHost, ports: options.Ports, on: options.On = None
) -> None:
    """Make a port of a box reachable here, such as that of TensorBoard or a notebook, until Ctrl-C.

    Only programs of this machine can connect, and only to what listens at 127.0.0.1 of the box. Connects again after a
    lost connection.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen, opened(context, screen) as project:
        from orchestrator.commands import on_box

        local, remote = on_box.parse_ports(ports)
        on_box.require_free(local)
        place = on_box.find(project, name, on, remote)
        try:
            on_box.forward(place, local, remote, lambda: screen.forwarding(place, local, remote), screen.terminal.note)
        except KeyboardInterrupt:
            screen.terminal.note(f"port {local} is no longer forwarded")
