"""Check from the facts of the box whether a launch can succeed. Pure functions that return checks."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence

from orchestrator.box.host_facts import BoxFacts
from orchestrator.box.probe import RsyncProgram
from orchestrator.checks.check import Check, fail, ok, warn
from orchestrator.checks.gpu import check_gpus
from orchestrator.spec.models import Host, Job
from orchestrator.ssh.rsync import INSTALL
from orchestrator.text import duration, size_text
from remote.contract.job_facts import CommandFacts, DataFacts, DataSample, JobFacts
from remote.contract.logout_outcome import LINGERING, NO_LINGER, UNTOUCHED, WILL_LINGER

MIN_DISK = 1 << 30  # bytes
MIN_INODES, FEW_INODES = (
    1_000,
    20_000,
)  # fail below the first, warn below the second; a snapshot needs hundreds of inodes
# Bytes: fail below the first, which torch alone needs; warn below the second.
MIN_MEMORY, LITTLE_MEMORY = 512 << 20, 2 << 30
CLOCK_S = 5.0  # how far the clocks may differ
NOT_SENT = "correct its path; if git ignores the file, list it in [project] include"
LFS_POINTER = "version https://git-lfs"


def check_host(
    facts: BoxFacts,
    host: Host,
    gpus: float | None = None,
    forecast_bytes: int | None = None,
    rsync_here: RsyncProgram | None = None,
    needs_rsync: bool = True,
) -> list[Check]:
    """Check the box itself.

    Args:
        facts: The facts of the box.
        host: The host in jobs.toml.
        gpus: The most GPUs that one job needs; None if there is no job, as in `orch doctor`.
        forecast_bytes: The disk space that the jobs will need, if it is known.
        rsync_here: The rsync of this machine; None if it is not installed.
        needs_rsync: Whether files are copied by rsync.
    """
    return [
        _python(facts),
        *_disk(facts, forecast_bytes),
        *_memory(facts),
        *check_gpus(facts, host, gpus),
        *_launcher(facts, host),
        *_logout(facts),
        *(_rsync(facts, host, rsync_here) if host.ssh and needs_rsync else ()),
        *(_clock(facts) if host.ssh else ()),
    ]


def check_job(facts: BoxFacts, job: Job, environment: Container[str]) -> list[Check]:
    """Check one job on the box.

    Args:
        facts: The facts of the box, which include the job.
        job: The job.
        environment: The names of the variables of this machine, from which secrets are taken.
    """
    found = facts.jobs.get(job.name, JobFacts(problem="no information from the box"))
    secrets = list(_secrets(job, environment))
    if found.problem:
        return [warn("job", f"{job.name} could not be checked: {found.problem}", "check the box's disk"), *secrets]
    return [
        *_live_run(job, found),
        *_environment(found),
        *_commands(job, found),
        *_data(job, found),
        *secrets,
    ]


def check_environment(left_out: Sequence[str]) -> Iterator[Check]:
    """Warn about variables of this shell that jobs on `local` do not inherit, because they look like credentials."""
    if left_out:
        hint = f"to give one to a job, list it in the job: secrets = [{json.dumps(left_out[0])}]"
        yield warn("environment", f"not passed to jobs because they look like credentials: {', '.join(left_out)}", hint)


# --- the box -------------------------------------------------------------------------------------------


def _python(facts: BoxFacts) -> Check:
    python = facts.job_python
    if python.problem:
        return fail(
            "python", f"the Python for jobs does not run: {python.problem}", "set `python` of this host in jobs.toml"
        )
    return ok("python", f"{python.version} ({python.executable}) on {facts.system}".strip())


def _disk(facts: BoxFacts, forecast_bytes: int | None) -> Iterator[Check]:
    disk = facts.disk
    if disk is None:
        yield warn("disk", "no information from the box about free space", "run `df -h` on the box")
        return
    needed = max(MIN_DISK, forecast_bytes or 0)
    detail = f"{size_text(disk.free)} free of {size_text(disk.total)} at {disk.path}; {size_text(needed)} needed"
    if not disk.writable:
        yield fail("disk", f"{disk.path} is not writable", "set `root` of this host to a directory of your own")
    elif disk.free < needed:
        hint = f"delete files below {disk.path}, or set `root` of this host to a larger disk"
        yield fail("disk", detail, hint)
    else:
        yield ok("disk", detail)
    if disk.inodes_total and disk.inodes_free < FEW_INODES:
        detail = f"{disk.inodes_free} of {disk.inodes_total} inodes free at {disk.path}"
        hint = "the disk holds too many small files: delete some"
        yield (fail if disk.inodes_free < MIN_INODES else warn)("inodes", detail, hint)
    elif disk.inodes_total:
        yield ok("inodes", f"{disk.inodes_free} of {disk.inodes_total} free")


def _memory(facts: BoxFacts) -> Iterator[Check]:
    memory = facts.memory
    if memory is None:
        return  # not Linux, so the box did not report it
    detail = f"{size_text(memory.available)} available of {size_text(memory.total)}"
    if memory.available >= LITTLE_MEMORY:
        yield ok("memory", detail)
    else:
        hint = "see what uses it (`ps aux --sort=-rss | head` on the box), or use a larger box"
        yield (fail if memory.available < MIN_MEMORY else warn)("memory", detail, hint)


def _launcher(facts: BoxFacts, host: Host) -> Iterator[Check]:
    if host.launcher != "tmux":
        return
    if facts.tmux is None:
        hint = f'apt-get install tmux on the box, or `launcher = "nohup"` in [hosts.{host.name}]'
        yield fail("launcher", '`launcher = "tmux"`, but tmux is not installed on the box', hint)
    else:
        yield ok("launcher", f"tmux {facts.tmux}")


def _logout(facts: BoxFacts) -> Iterator[Check]:
    """Check whether runs outlive the login, if systemd-logind ends what a login has started."""
    outcome = facts.logout.outcome if facts.logout else UNTOUCHED
    if outcome == UNTOUCHED:
        return
    setting = "systemd-logind ends what a login has started (KillUserProcesses)"
    if outcome == LINGERING:
        yield ok("logout", f"{setting}; runs are started in the user's systemd, which lingers")
    elif outcome == WILL_LINGER:
        detail = f"{setting}; orch starts runs in the user's systemd, and the first launch lets that linger"
        yield warn("logout", detail, "to do it now, on the box: loginctl enable-linger")
    elif outcome == NO_LINGER:
        detail = f"{setting}: runs will be killed when this user's last login ends, and the user's systemd with it"
        yield warn("logout", detail, "ask an administrator of the box to run: loginctl enable-linger USER")
    else:
        detail = f"{setting}: runs will be killed when the login ends that started them; this user has no systemd"
        hint = "ask an administrator of the box for KillUserProcesses=no in /etc/systemd/logind.conf"
        yield warn("logout", detail, hint)


def _rsync(facts: BoxFacts, host: Host, here: RsyncProgram | None) -> Iterator[Check]:
    missing = [where for where, found in (("here", here), (f"on {host.name}", facts.rsync)) if found is None]
    if here is None or facts.rsync is None:
        yield fail("rsync", f"not installed {' nor '.join(missing)}", f'{INSTALL}; or set `client = "fabric"`')
    else:
        yield ok("rsync", f"{here.kind} {here.version} here, {facts.rsync.kind} {facts.rsync.version} on {host.name}")


def _clock(facts: BoxFacts) -> Iterator[Check]:
    clock = facts.clock
    if clock is None:
        return
    direction = "ahead of" if clock.ahead > 0 else "behind"
    if abs(clock.ahead) > max(CLOCK_S, clock.uncertainty):
        detail = f"the box is {duration(abs(clock.ahead))} {direction} this machine"
        yield warn(
            "clock",
            detail,
            "turn on time synchronization on the machine whose clock is wrong: sudo timedatectl set-ntp true",
        )
    else:
        yield ok("clock", f"the box is {abs(clock.ahead):.1f} s {direction} this machine (± {clock.uncertainty:.1f} s)")


# --- one job -------------------------------------------------------------------------------------------


def _live_run(job: Job, found: JobFacts) -> Iterator[Check]:
    if found.live_run:
        hint = f"to follow it: orch tail {job.name}; to stop it: orch stop {job.name}"
        yield fail("other run", f"{job.name} is already running (run {found.live_run})", hint)


def _commands(job: Job, found: JobFacts) -> Iterator[Check]:
    if found.env_error:
        yield fail("env", found.env_error, "correct `env` or `data.path` of the job")
    if found.prepare_error:
        yield fail("prepare", found.prepare_error, "correct `prepare.inputs` of the job")
    if not found.has_code:
        yield warn("command", "not checked: this code is not on the box yet", "to send it: orch sync --code")
    will_be_built = found.environment is not None and not found.environment.built
    for command in found.commands:
        may_be_made = command.of == "command" and job.prepare is not None
        is_named_or_on_path = command.kind == "script" or "/" in command.program or "PATH" in job.env
        yield _command(command, may_be_made and is_named_or_on_path, will_be_built)


def _environment(found: JobFacts) -> Iterator[Check]:
    there = found.environment
    if there is None:
        return
    of_code = f"{there.file} installs a part of the code itself, so it is built again for every version of the code"
    if there.problem:
        yield fail("environment", there.problem, there.hint)
    elif there.built:
        yield ok("environment", f"{there.file} is built")
    else:
        what = f"{there.tool}, with Python {there.python}" if there.python else there.tool
        yield ok("environment", f"{there.file} will be built by {what}; this can take minutes, once")
    if there.uses_code and not there.problem:
        hint = "list its dependencies, or name pyproject.toml, instead of `-e .`: the code itself is on PYTHONPATH"
        yield warn("environment", of_code, hint)


def _command(command: CommandFacts, may_be_made: bool, will_be_built: bool) -> Check:
    """Check one command.

    Args:
        command: The command.
        may_be_made: Whether the job's `prepare` may make its program, in the working directory or on the job's PATH.
        will_be_built: Whether its environment, which may have the program, is not built yet.
    """
    is_absent = command.found is None or (command.kind == "script" and not command.in_snapshot)
    if is_absent and may_be_made:
        name = command.runs if command.kind == "script" else command.program
        return ok(command.of, f"{name!r} is not in the code that was sent; `prepare` has to make it")
    if command.found is None and will_be_built and "/" not in command.program:
        return ok(command.of, f"{command.program!r} is not on the box; the environment has to provide it")
    if command.found is None:
        hint = "correct the command, or install the program on the box"
        return fail(command.of, f"the program {command.program!r} is not installed", hint)
    runs = f"{command.kind} {command.runs}"
    if command.kind == "script" and not command.in_snapshot:
        return fail(command.of, f"{command.runs!r} is not in the code that was sent", NOT_SENT)
    if command.kind == "module" and not command.in_snapshot:
        detail = f"{runs} is not in the code that was sent; it may be installed on the box"
        return warn(command.of, detail, "if it is part of your code, correct its name")
    if command.unset:
        names = ", ".join(f"${name}" for name in command.unset)
        return warn(command.of, f"uses {names}, which is not set", "set it in `env` of the job")
    return ok(command.of, f"{runs}, run by {command.found}" if command.kind else command.found)


def _data(job: Job, found: JobFacts) -> Iterator[Check]:
    wanted, data = job.data, found.data
    if wanted is None:
        return
    if data is None:
        yield warn("data", "no information from the box")
    elif data.matches >= wanted.at_least:
        broken = next((problem for sample in data.samples if (problem := _broken(sample))), "")
        there = f"found files matching {wanted.pattern} in {data.directory}"
        hint = "copy it to the box again, or correct `data.pattern` of the job"
        yield fail("data", f"{there}, but {broken}", hint) if broken else ok("data", f"{there}; {_sizes(data)}")
    elif job.prepare is not None and not found.prepared:
        yield ok("data", f"`prepare` will create it; {wanted.at_least} files matching {wanted.pattern} are expected")
    else:
        yield _missing(job, data)


def _missing(job: Job, data: DataFacts) -> Check:
    assert job.data is not None  # the caller has checked
    if data.directory is None:
        return fail("data", "the job has neither `data.path` nor `prepare`", "set `data.path` of the job")
    if not data.exists:
        return fail("data", f"no directory {data.directory}", "copy the data there, or correct `data.path`")
    detail = f"{data.matches} files match {job.data.pattern} in {data.directory}; the job needs {job.data.at_least}"
    there = ", ".join(f"{count} {kind}" for kind, count in data.instead)
    hint = f"it contains: {there}; set `data.pattern` to match the data" if there else "the directory contains no files"
    return fail("data", detail, hint)


def _broken(sample: DataSample) -> str:
    if sample.error:
        return f"{sample.path} cannot be read: {sample.error}"
    if sample.size == 0:
        return f"{sample.path} is empty"
    return f"{sample.path} is a Git LFS pointer, not the file itself" if sample.head.startswith(LFS_POINTER) else ""


def _sizes(data: DataFacts) -> str:
    sizes = [size_text(sample.size) for sample in data.samples if sample.size is not None]
    return f"read {len(sizes)} to test ({', '.join(sizes)})" if sizes else "all directories"


def _secrets(job: Job, environment: Container[str]) -> Iterator[Check]:
    sources = job.secrets.values()
    missing = [secret.env for secret in sources if secret.env and secret.env not in environment]
    if missing:
        yield fail(
            "secrets", f"{', '.join(missing)} not set on this machine", f"export {missing[0]}=..., then launch again"
        )
    elif job.secrets:
        yield ok("secrets", f"{', '.join(job.secrets)} available on this machine")
