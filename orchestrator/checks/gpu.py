"""What the facts say of a box's GPUs: the driver, the cards that jobs may use, who holds their memory."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.box.host_facts import BoxFacts
from orchestrator.checks.check import Check, fail, ok, warn
from orchestrator.spec.models import Host
from remote.contract.nvidia import Gpu, GpuProcess

LEAST_FREE_MIB = 1024  # a CUDA context alone takes a third of it
ON_CPU = "or `gpus = 0` for this host in jobs.toml, which runs its jobs on the CPU"
# What nvidia-smi says, beginning with the most certain sign -> what helps.
REMEDIES = (
    ("version mismatch", "the driver was updated under a running system: restart the box (sudo reboot)"),
    (
        "couldn't communicate",
        "the kernel has no driver loaded: restart the box; if that does not help, reinstall the driver for this kernel",
    ),
    ("no devices were found", "the driver sees no GPU: look at `sudo dmesg | grep -i nvrm`, then restart the box"),
    ("gpu is lost", "the GPU fell off the bus: stop and start the instance, which moves it to other hardware"),
    ("no answer", "the driver hangs: restart the box"),
)


def check_gpus(facts: BoxFacts, host: Host, gpus: float | None) -> Iterator[Check]:
    """`gpus` is the most that a job asks for; None where no job is in view, as in `orch doctor`."""
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


def cards_of(facts: BoxFacts, host: Host) -> tuple[Gpu, ...]:
    """The cards that jobs on this host may get."""
    wanted = range(host.gpus) if isinstance(host.gpus, int) else host.gpus
    return tuple(card for card in facts.gpus.cards if wanted is None or card.index in wanted)


def _driver(facts: BoxFacts, host: Host, gpus: float | None, cards: tuple[Gpu, ...]) -> Check:
    found = facts.gpus
    if not found.has_tool:
        detail, hint = "nvidia-smi is not installed: no NVIDIA driver", f"install the driver, {ON_CPU}"
        return fail("gpu", detail, hint) if gpus or host.gpus else warn("gpu", detail, hint)
    if found.problem:
        said = found.problem.lower()
        remedy = next((remedy for sign, remedy in REMEDIES if sign in said), "run nvidia-smi on the box")
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


# --- who holds the memory ------------------------------------------------------------------------------


def _memory(facts: BoxFacts, cards: tuple[Gpu, ...]) -> Iterator[Check]:
    """One check for the room, and one for each process that holds some without being a run at work."""
    room = "; ".join(f"GPU {card.index}: {mib_text(card.free)} free of {mib_text(card.total)}" for card in cards)
    # Of all cards together, so that with several of them a card is rather let pass than refused.
    by_runs = sum(process.memory or 0 for process in facts.gpu_processes if is_of_live_run(facts, process))
    strangers = [process for process in facts.gpu_processes if not is_of_live_run(facts, process)]
    if by_runs:
        room += f"; {mib_text(by_runs)} used by running jobs, which a new job waits for"
    if all(card.free is not None and card.free + by_runs < LEAST_FREE_MIB for card in cards):
        hint = "end the processes below that use it" if strangers else "no visible process uses it: restart the box"
        yield fail("gpu memory", room, hint)
    else:
        yield ok("gpu memory", room)
    for process in strangers:
        yield _holder(facts, process)


def is_of_live_run(facts: BoxFacts, process: GpuProcess) -> bool:
    owner = facts.gpu_owners.get(process.pid)
    return owner is not None and owner.is_of_live_run


def _holder(facts: BoxFacts, process: GpuProcess) -> Check:
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
    if amount is None:
        return "an unknown amount"
    return f"{amount} MiB" if amount < 1024 else f"{amount / 1024:.1f} GiB"


# --- torch ---------------------------------------------------------------------------------------------


def _torch(facts: BoxFacts) -> Iterator[Check]:
    """Nothing where it was not asked."""
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
