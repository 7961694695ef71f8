"""Check the GPUs of a box: the driver, the GPUs that jobs may use, and which processes use their memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

from orchestrator.box.host_facts import BoxFacts
from orchestrator.checks.check import Check, fail, ok, warn
from orchestrator.spec.models import Host, Job
from orchestrator.spec.values import CUDA_DEVICES
from remote.contract.nvidia import Gpu, GpuProcess

MIN_FREE_MIB = 1024  # a CUDA context alone needs a third of this
ON_CPU = "or set `gpus = 0` for this host in jobs.toml, which runs its jobs on the CPU"
# The oldest driver on which programs for each major version of CUDA run, newest CUDA first. Source: NVIDIA, "CUDA
# Compatibility", minor version compatibility, and the release notes of CUDA 11.0 and 12.0 for the complete numbers.
# (CUDA 10 has no such rule, and what a later one will need is not known.)
MIN_DRIVERS = ((13, "580"), (12, "525.60.13"), (11, "450.80.02"))
# A part of the message of nvidia-smi, and what to do about it. The most specific messages are first.
REMEDIES = (
    ("version mismatch", "the driver was updated under a running system: restart the box (sudo reboot)"),
    (
        "couldn't communicate",
        "the kernel has no driver loaded: restart the box; if that does not help, reinstall the driver for this kernel",
    ),
    ("no devices were found", "the driver sees no GPU: check `sudo dmesg | grep -i nvrm`, then restart the box"),
    ("gpu is lost", "the GPU fell off the bus: stop and start the instance, which moves it to other hardware"),
    ("no answer", "the driver hangs: restart the box"),
)


def check_gpus(facts: BoxFacts, host: Host, gpus: float | None) -> Iterator[Check]:
    """Check the driver, the free memory and PyTorch. Yields nothing if no job needs a GPU.

    Args:
        facts: The facts of the box.
        host: The host in jobs.toml.
        gpus: The most GPUs that one job needs; None if there is no job, as in `orch doctor`.
    """
    if gpus == 0:
        return
    if host.gpus == 0:
        yield ok("gpu", f"not checked: `gpus = 0`, jobs run on the CPU of {host.name}")
        return
    cards = cards_of(facts, host)
    driver = _driver(facts, host, gpus, cards)
    yield driver
    if driver.status != "fail" and cards:
        yield from _memory(facts, cards)
    yield from _torch(facts)


def check_use(facts: BoxFacts, host: Host, job: Job) -> Iterator[Check]:
    """Warn about a job that will see no GPU although the host has some, and about one that chooses its GPUs itself.

    A job that sets `gpus = 0` in jobs.toml has said that it needs none.
    """
    cards = cards_of(facts, host)
    if job.gpus is None and cards:
        detail = f"{host.name} has {len(cards)} GPUs, but the job sets no `gpus`, so it will see none"
        yield warn("gpus", detail, "set `gpus = 1` in the job, or `gpus = 0` if it runs on the CPU")
    if any(f"{CUDA_DEVICES}=" in word for word in job.command):
        detail = f"the command sets {CUDA_DEVICES}, so the job may use GPUs of other jobs"
        yield warn("gpus", detail, "set `gpus` in the job instead: orch then sets the variable")


def cards_of(facts: BoxFacts, host: Host) -> tuple[Gpu, ...]:
    """Return the GPUs that jobs on this host may use, by `gpus` of the host."""
    wanted = range(host.gpus) if isinstance(host.gpus, int) else host.gpus
    return tuple(card for card in facts.gpus.cards if wanted is None or card.index in wanted)


def _driver(facts: BoxFacts, host: Host, gpus: float | None, cards: tuple[Gpu, ...]) -> Check:
    found = facts.gpus
    if not found.has_tool:
        detail, hint = "nvidia-smi is not installed: no NVIDIA driver", f"install the driver, {ON_CPU}"
        return fail("gpu", detail, hint) if gpus or host.gpus else warn("gpu", detail, hint)
    if found.problem:
        message = found.problem.lower()
        remedy = next((remedy for part, remedy in REMEDIES if part in message), "run nvidia-smi on the box")
        return fail("gpu", f"nvidia-smi: {found.problem}", f"{remedy}; {ON_CPU}")
    declared = host.gpus if isinstance(host.gpus, int) else len(host.gpus or ())
    if len(cards) < declared:
        there = ", ".join(str(card.index) for card in found.cards)
        detail = f"jobs.toml gives {host.name} {declared} GPUs, but it has {len(cards)} of them (index {there})"
        return fail("gpu", detail, f"correct `gpus` of [hosts.{host.name}]")
    if gpus and gpus > len(cards):
        return fail("gpu", f"a job needs {gpus:g} GPUs, but {host.name} has {len(cards)}", "lower `gpus` of the job")
    banned = [card for card in cards if card.compute_mode == "Prohibited"]
    if banned:
        hint = f"sudo nvidia-smi -i {banned[0].index} -c DEFAULT"
        return fail("gpu", f"GPU {banned[0].index} is in compute mode Prohibited: nothing can run on it", hint)
    return ok("gpu", "; ".join(f"{card.index}: {card.name}, driver {card.driver}" for card in cards))


# --- memory, and the processes that use it -------------------------------------------------------------


def _memory(facts: BoxFacts, cards: tuple[Gpu, ...]) -> Iterator[Check]:
    """Check the free memory, and warn about each process that uses some and does not belong to a live run."""
    detail = "; ".join(f"GPU {card.index}: {mib_text(card.free)} free of {mib_text(card.total)}" for card in cards)
    # Use the sum over all GPUs: with several GPUs, the check may pass wrongly, but never fails wrongly.
    used_by_runs = sum(process.memory or 0 for process in facts.gpu_processes if is_of_live_run(facts, process))
    other_processes = [process for process in facts.gpu_processes if not is_of_live_run(facts, process)]
    if used_by_runs:
        detail += f"; {mib_text(used_by_runs)} used by running jobs, which a new job waits for"
    if all(card.free is not None and card.free + used_by_runs < MIN_FREE_MIB for card in cards):
        hint = "end the processes below" if other_processes else "no visible process uses it: restart the box"
        yield fail("gpu memory", detail, hint)
    else:
        yield ok("gpu memory", detail)
    for process in other_processes:
        yield _other_process(facts, process)


def is_of_live_run(facts: BoxFacts, process: GpuProcess) -> bool:
    """Return True if the process belongs to a run of orch that has not ended."""
    owner = facts.gpu_owners.get(process.pid)
    return owner is not None and owner.is_of_live_run


def _other_process(facts: BoxFacts, process: GpuProcess) -> Check:
    owner = facts.gpu_owners.get(process.pid)
    what = f"pid {process.pid} uses {mib_text(process.memory)}"
    if owner is None or not owner.owner:
        return warn("gpu process", f"{what}: {process.name}, not visible from here (another container?)")
    command = owner.command or process.name
    if owner.is_orphan:
        detail = f"{what}: left over from run {owner.run}, which has ended ({owner.owner}: {command})"
        return warn("gpu process", detail, f"on the box: kill {process.pid}")
    hint = f"if nobody needs it, run on the box: kill {process.pid}"
    return warn("gpu process", f"{what}: {command} of {owner.owner}, not a run of orch", hint)


def mib_text(amount: int | None) -> str:
    """Format an amount of memory in MiB: `512 MiB`, `1.5 GiB`."""
    if amount is None:
        return "an unknown amount"
    return f"{amount} MiB" if amount < 1024 else f"{amount / 1024:.1f} GiB"


# --- torch ---------------------------------------------------------------------------------------------


def check_job_torch(facts: BoxFacts, host: Host, job: Job) -> Iterator[Check]:
    """Warn if the torch of the job's Python, as far as it is known, cannot use the GPUs of the box.

    torch would not fail: it reports that there is no GPU, and many programs then train on the CPU. It is a warning
    because a program need not use torch on the GPU, and a box may have the forward-compatibility libraries of NVIDIA.
    """
    found = facts.jobs[job.name].torch if job.name in facts.jobs else None
    cards = cards_of(facts, host)
    if found is None or not job.gpus or not cards:
        return
    torch = f"torch {found.version} of {found.python}"
    if found.cuda is None:
        built = "ROCm (AMD GPUs)" if found.hip else "the CPU only"
        detail = f"{torch} is built for {built}, so it will see no GPU, but the job has `gpus = {job.gpus:g}`"
        yield warn("torch", detail, "install a torch that is built for CUDA")
        return
    needed = next((driver for major, driver in MIN_DRIVERS if found.cuda.partition(".")[0] == str(major)), None)
    driver = cards[0].driver
    if needed is None or not _numbers(driver) or _numbers(driver) >= _numbers(needed):
        return
    detail = f"{torch} (CUDA {found.cuda}) needs driver >= {needed}, but {host.name} has {driver}: it will see no GPU"
    fits = next((major for major, oldest in MIN_DRIVERS if _numbers(driver) >= _numbers(oldest)), None)
    other = f"install a torch that is built for CUDA {fits}, or " if fits else ""
    yield warn("torch", detail, f"{other}update the driver of the box")


def _numbers(version: str) -> tuple[int, ...]:
    """Return the parts of a driver's version; none if it is not one, such as `[N/A]`."""
    return tuple(map(int, version.split("."))) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}", version) else ()


def _torch(facts: BoxFacts) -> Iterator[Check]:
    """Check that torch is installed and sees a GPU. Yields nothing if the box was not asked about torch."""
    python = facts.job_python
    hint = "set `python` of this host in jobs.toml to the Python that has PyTorch for CUDA"
    if python.torch_error:
        yield warn("torch", f"{python.executable} cannot import torch: {python.torch_error}", hint)
    elif python.torch and not python.cuda:
        build = f"built for CUDA {python.torch_cuda}" if python.torch_cuda else "built for the CPU only"
        yield fail("torch", f"torch {python.torch} of {python.executable} sees no GPU; it was {build}", hint)
    elif python.torch:
        devices = ", ".join(python.devices)
        yield ok("torch", f"torch {python.torch}, CUDA {python.torch_cuda}, sees {devices}")
