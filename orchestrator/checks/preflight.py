"""Whether a launch can succeed, from the facts of the box: pure functions to lists of checks."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence

from orchestrator.box.host_facts import BoxFacts, JobFacts
from orchestrator.box.probe import RsyncProgram
from orchestrator.checks.check import Check, Status, fail, ok, warn
from orchestrator.checks.gpu import check_gpus
from orchestrator.spec.models import Host, Job
from orchestrator.ssh.rsync import INSTALL
from orchestrator.text import duration, size_text
from remote.contract.job_facts import CommandFacts, DataFacts, DataSample

__all__ = ["Check", "Status", "check_environment", "check_host", "check_job"]

LEAST_DISK = 1 << 30  # bytes
LEAST_INODES, FEW_INODES = 1_000, 20_000  # a snapshot needs hundreds, a prepared data set thousands
LEAST_MEMORY, LITTLE_MEMORY = 512 << 20, 2 << 30  # bytes; torch alone takes the first
CLOCK_S = 5.0
LFS_POINTER = "version https://git-lfs"


def check_host(
    facts: BoxFacts,
    host: Host,
    gpus: float | None = None,
    forecast_bytes: int | None = None,
    rsync_here: RsyncProgram | None = None,
) -> list[Check]:
    """The box itself. `gpus`: the most that a job asks for, None without a job in view; `rsync_here`: the laptop's."""
    return [
        _python(facts),
        *_disk(facts, forecast_bytes),
        *_memory(facts),
        *check_gpus(facts, host, gpus),
        *_launcher(facts, host),
        *(_rsync(facts, host, rsync_here) if host.ssh else ()),
        *(_clock(facts) if host.ssh else ()),
    ]


def check_job(facts: BoxFacts, job: Job, environment: Container[str]) -> list[Check]:
    """One job on the box. `environment` holds the names of the laptop's variables, where secrets come from."""
    found = facts.jobs.get(job.name, JobFacts(problem="the box said nothing of it"))
    secrets = list(_secrets(job, environment))
    if found.problem:
        return [warn("job", f"{job.name} could not be looked at: {found.problem}", "look at the box's disk"), *secrets]
    return [
        *_live_run(job, found),
        *_commands(found),
        *_data(job, found),
        *secrets,
    ]


def check_environment(left_out: Sequence[str]) -> Iterator[Check]:
    """Name the variables of this shell that look like credentials and that no job on `local` inherits."""
    if left_out:
        hint = f"a job that needs one names it: secrets = [{json.dumps(left_out[0])}]"
        yield warn("environment", f"not given to jobs, by their names: {', '.join(left_out)}", hint)


# --- the box -------------------------------------------------------------------------------------------


def _python(facts: BoxFacts) -> Check:
    python = facts.job_python
    if python.problem:
        return fail("python", f"the jobs' Python does not run: {python.problem}", "set `python` of this host")
    return ok("python", f"{python.version} ({python.executable}) on {facts.system}".strip())


def _disk(facts: BoxFacts, forecast_bytes: int | None) -> Iterator[Check]:
    disk = facts.disk
    if disk is None:
        yield warn("disk", "the box does not say how much room there is", "look at `df -h` on the box")
        return
    needed = max(LEAST_DISK, forecast_bytes or 0)
    room = f"{size_text(disk.free)} free of {size_text(disk.total)} at {disk.path}"
    if not disk.writable:
        yield fail("disk", f"{disk.path} cannot be written", "set `root` of this host to a place of your own")
    elif disk.free < needed:
        hint = f"delete what is not needed below {disk.path}, or set `root` of this host to a larger disk"
        yield fail("disk", f"{room}; {size_text(needed)} are needed", hint)
    else:
        yield ok("disk", f"{room}; {size_text(needed)} are needed")
    if disk.inodes_total and disk.inodes_free < FEW_INODES:
        detail = f"{disk.inodes_free} of {disk.inodes_total} inodes are free at {disk.path}"
        hint = "many small files fill the disk without its bytes: delete some"
        yield (fail if disk.inodes_free < LEAST_INODES else warn)("inodes", detail, hint)
    elif disk.inodes_total:
        yield ok("inodes", f"{disk.inodes_free} of {disk.inodes_total} are free")


def _memory(facts: BoxFacts) -> Iterator[Check]:
    memory = facts.memory
    if memory is None:
        return  # no Linux: nothing to say
    detail = f"{size_text(memory.available)} available of {size_text(memory.total)}"
    if memory.available >= LITTLE_MEMORY:
        yield ok("memory", detail)
    else:
        hint = "see who uses it (`ps aux --sort=-rss | head` on the box), or take a larger box"
        yield (fail if memory.available < LEAST_MEMORY else warn)("memory", detail, hint)


def _launcher(facts: BoxFacts, host: Host) -> Iterator[Check]:
    if host.launcher != "tmux":
        return
    if facts.tmux is None:
        hint = f'apt-get install tmux on the box, or `launcher = "nohup"` in [hosts.{host.name}]'
        yield fail("launcher", '`launcher = "tmux"`, and tmux is not installed on the box', hint)
    else:
        yield ok("launcher", f"tmux {facts.tmux}")


def _rsync(facts: BoxFacts, host: Host, here: RsyncProgram | None) -> Iterator[Check]:
    missing = [where for where, found in (("here", here), (f"on {host.name}", facts.rsync)) if found is None]
    if here is None or facts.rsync is None:
        yield fail("rsync", f"there is none {' and none '.join(missing)}", INSTALL)
    else:
        yield ok("rsync", f"{here.kind} {here.version} here, {facts.rsync.kind} {facts.rsync.version} on {host.name}")


def _clock(facts: BoxFacts) -> Iterator[Check]:
    clock = facts.clock
    if clock is None:
        return
    way = "ahead of" if clock.ahead > 0 else "behind"
    if abs(clock.ahead) > max(CLOCK_S, clock.uncertainty):
        detail = f"the box is {duration(abs(clock.ahead))} {way} this machine"
        yield warn(
            "clock", detail, "turn on time synchronisation (sudo timedatectl set-ntp true) on the one that is wrong"
        )
    else:
        yield ok("clock", f"the box is {abs(clock.ahead):.1f} s {way} this machine (± {clock.uncertainty:.1f} s)")


# --- one job -------------------------------------------------------------------------------------------


def _live_run(job: Job, found: JobFacts) -> Iterator[Check]:
    if found.live_run:
        hint = f"`orch tail {job.name}` follows it, `orch stop {job.name}` ends it"
        yield fail("other run", f"{job.name} is already at work as run {found.live_run}", hint)


def _commands(found: JobFacts) -> Iterator[Check]:
    if found.prepare_error:
        yield fail("prepare", found.prepare_error, "correct `prepare.inputs` of the job")
    if not found.has_code:
        yield warn("command", "not looked for: this code is not on the box yet", "orch sync --code brings it there")
    for command in found.commands:
        yield _command(command)


def _command(command: CommandFacts) -> Check:
    if command.found is None:
        hint = "correct the command, or install the program on the box"
        return fail(command.of, f"the program {command.program!r} is not there", hint)
    runs = f"{command.kind} {command.runs}"
    if command.kind == "script" and not command.in_snapshot:
        return fail(command.of, f"there is no {command.runs!r} in the code that was shipped", "correct its path")
    if command.kind == "module" and not command.in_snapshot:
        detail = f"{runs} is not in the code that was shipped; it may be installed on the box"
        return warn(command.of, detail, "correct its name if it is yours")
    if command.unset:
        names = ", ".join(f"${name}" for name in command.unset)
        return warn(command.of, f"it names {names}, which nothing sets", "set it in `env` of the job")
    return ok(command.of, f"{runs}, by {command.found}" if command.kind else command.found)


def _data(job: Job, found: JobFacts) -> Iterator[Check]:
    wanted, data = job.data, found.data
    if wanted is None:
        return
    if data is None:
        yield warn("data", "the box said nothing of it")
    elif data.matches >= wanted.at_least:
        broken = next((problem for sample in data.samples if (problem := _broken(sample))), "")
        there = f"at least {data.matches} files match {wanted.pattern} in {data.directory}"
        hint = "bring it to the box again, or correct `data.pattern` of the job"
        yield fail("data", f"{there}, but {broken}", hint) if broken else ok("data", f"{there}, {_sizes(data)}")
    elif job.prepare is not None and not found.prepared:
        yield ok("data", f"`prepare` makes it: {wanted.at_least} files {wanted.pattern} are looked for after that")
    else:
        yield _missing(job, data)


def _missing(job: Job, data: DataFacts) -> Check:
    assert job.data is not None  # its caller has looked
    if data.directory is None:
        return fail("data", "the job has neither `data.path` nor `prepare`", "say where its data is: `data.path`")
    if not data.exists:
        return fail("data", f"there is no directory {data.directory}", "bring the data there, or correct `data.path`")
    detail = f"{data.matches} files match {job.data.pattern} in {data.directory}; the job asks for {job.data.at_least}"
    there = ", ".join(f"{count} of {kind}" for kind, count in data.instead)
    hint = f"what is there: {there}; `data.pattern` says which of it is data" if there else "the directory is empty"
    return fail("data", detail, hint)


def _broken(sample: DataSample) -> str:
    if sample.error:
        return f"{sample.path} cannot be read: {sample.error}"
    if sample.size == 0:
        return f"{sample.path} is empty"
    return f"{sample.path} is a Git LFS pointer, not the file itself" if sample.head.startswith(LFS_POINTER) else ""


def _sizes(data: DataFacts) -> str:
    sizes = [size_text(sample.size) for sample in data.samples if sample.size is not None]
    return f"{len(sizes)} of them read ({', '.join(sizes)})" if sizes else "all directories"


def _secrets(job: Job, environment: Container[str]) -> Iterator[Check]:
    sources = job.secrets.values()
    missing = [secret.env for secret in sources if secret.env and secret.env not in environment]
    if missing:
        yield fail("secrets", f"{', '.join(missing)} not set here", f"export {missing[0]}=..., then launch again")
    elif job.secrets:
        yield ok("secrets", f"{', '.join(job.secrets)} can be had here")
