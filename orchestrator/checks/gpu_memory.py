"""Check whether jobs that share a GPU fit into its memory, as measured by their rehearsals. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.box.host_facts import BoxFacts
from orchestrator.checks.check import Check, fail, ok, warn
from orchestrator.checks.gpu import cards_of, is_of_live_run, mib_text
from orchestrator.spec.models import Host
from remote.contract.nvidia import Gpu
from remote.contract.placement import SHARES, choose, shares_of

NAME = "gpu forecast"
CONTEXT_MIB = 512  # about what CUDA itself takes for each process; a rehearsal does not measure it
MIB = 1 << 20


@dataclass(frozen=True)
class Need:
    """What one job needs: `gpus` GPUs or a share of one, and `peak` bytes on each; None if that is not known."""

    job: str
    gpus: float
    peak: int | None


@dataclass(frozen=True)
class FreeMemory:
    """The free memory of one GPU in MiB: now, and after the running jobs have ended. None if it is not reported."""

    card: Gpu
    now: int | None
    later: int | None


def check_forecast(facts: BoxFacts, host: Host, needs: Sequence[Need]) -> list[Check]:
    """Return one check for each GPU that the jobs would use."""
    if host.gpus == 0:
        return []
    cards = [_free_memory(facts, card) for card in cards_of(facts, host)]
    gpu_needs = [need for need in needs if need.gpus > 0]
    if not cards or not gpu_needs:
        return []
    # If runs use some of several GPUs, it is not known which GPU a job will get.
    is_certain = len(cards) == 1 or not any(is_of_live_run(facts, process) for process in facts.gpu_processes)
    groups, waiting = place(gpu_needs, len(cards))
    checks = [_check_card(free, group, is_certain) for free, group in zip(cards, groups, strict=True) if group]
    most_free = max(cards, key=lambda free: free.later or 0)
    return checks + [_check_card(most_free, [need], is_certain) for need in waiting]


def place(needs: Sequence[Need], cards: int) -> tuple[list[list[Need]], list[Need]]:
    """Place jobs on idle GPUs, as the supervisors will.

    Args:
        needs: The jobs.
        cards: The number of GPUs.

    Returns:
        The jobs on each GPU, and the jobs that have to wait for others to end.
    """
    free = dict.fromkeys(range(cards), SHARES)
    groups: list[list[Need]] = [[] for _ in range(cards)]
    waiting: list[Need] = []
    for need in needs:
        chosen = choose(free, need.gpus)
        if chosen is None:
            waiting.append(need)
        for card in chosen or ():
            free[card] -= shares_of(need.gpus)
            groups[card].append(need)
    return groups, waiting


def _free_memory(facts: BoxFacts, card: Gpu) -> FreeMemory:
    is_only = len(facts.gpus.cards) == 1
    processes = [process for process in facts.gpu_processes if is_only or process.gpu == card.uuid]
    free = card.free
    if free is None and card.total is not None and all(process.memory is not None for process in processes):
        free = card.total - sum(process.memory or 0 for process in processes)
    used_by_runs = sum(process.memory or 0 for process in processes if is_of_live_run(facts, process))
    return FreeMemory(card, free, None if free is None else free + used_by_runs)


def _check_card(free: FreeMemory, needs: Sequence[Need], is_certain: bool) -> Check:
    """Check whether jobs fit on one GPU together. If it is not certain that they will share it, only warn."""
    needed = sum(-(-(need.peak or 0) // MIB) for need in needs)
    each = " + ".join(f"{need.job} {_peak(need)}" for need in needs)
    total = f"{each} = {mib_text(needed)}" if len(needs) > 1 else each
    where = f"GPU {free.card.index} ({free.card.name}, {mib_text(free.card.total)})"
    if free.now is None or free.later is None:
        hint = "watch nvidia-smi on the box while the jobs run"
        return warn(NAME, f"{where} does not report free memory; the rehearsal measured {total}", hint)
    detail = f"{where}: needs {total}; {mib_text(free.later)} available"
    if needed > free.later:
        hint = "give each job a whole GPU (`gpus = 1`), use a smaller batch or a larger GPU, or end what else uses it"
        return (fail if is_certain else warn)(NAME, detail, hint)
    if needed > free.now:
        detail = f"{detail} once the running jobs have ended, {mib_text(free.now)} now"
        return warn(NAME, detail, "wait until they have ended")
    unknown = [need.job for need in needs if need.peak is None]
    if unknown:
        hint = "a worker can report it: peak_gpu_bytes in results/rehearsal.json"
        return warn(NAME, f"{detail}; the need of {', '.join(unknown)} is unknown", hint)
    if needed + CONTEXT_MIB * len(needs) > free.later:
        hint = "a smaller batch leaves more room"
        return warn(NAME, f"{detail}, and CUDA itself takes about {mib_text(CONTEXT_MIB)} for each process", hint)
    return ok(NAME, detail)


def _peak(need: Need) -> str:
    return "?" if need.peak is None else mib_text(-(-need.peak // MIB))
