"""Whether jobs that share a GPU fit into its memory together, by what their rehearsals measured. Pure."""

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
CONTEXT_MIB = 512  # what CUDA itself takes for a process, about; no rehearsal sees it
MIB = 1 << 20


@dataclass(frozen=True)
class Need:
    """What one job asks for: `gpus` cards or a share of one, and `peak` bytes on each; None where it is not known."""

    job: str
    gpus: float
    peak: int | None


@dataclass(frozen=True)
class Room:
    """MiB of one card: free now, and once the runs that are at work have ended; None where it does not say."""

    card: Gpu
    now: int | None
    later: int | None


def check_forecast(facts: BoxFacts, host: Host, needs: Sequence[Need]) -> list[Check]:
    """One check for each card that the jobs would use; nothing where they use none."""
    if host.gpus == 0:
        return []
    rooms = [_room(facts, card) for card in cards_of(facts, host)]
    wanted = [need for need in needs if need.gpus > 0]
    if not rooms or not wanted:
        return []
    # With several cards, and runs at work on some of them, nobody knows which card a job will get.
    is_certain = len(rooms) == 1 or not any(is_of_live_run(facts, process) for process in facts.gpu_processes)
    together, waiting = place(wanted, len(rooms))
    checks = [_judge(room, group, is_certain) for room, group in zip(rooms, together, strict=True) if group]
    roomiest = max(rooms, key=lambda room: room.later or 0)
    return checks + [_judge(roomiest, [need], is_certain) for need in waiting]


def place(needs: Sequence[Need], cards: int) -> tuple[list[list[Need]], list[Need]]:
    """Return the jobs on each card where nothing else runs, and the jobs that wait."""
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


def _room(facts: BoxFacts, card: Gpu) -> Room:
    is_only = len(facts.gpus.cards) == 1
    processes = [process for process in facts.gpu_processes if is_only or process.gpu == card.uuid]
    free = card.free
    if free is None and card.total is not None and all(process.memory is not None for process in processes):
        free = card.total - sum(process.memory or 0 for process in processes)
    by_runs = sum(process.memory or 0 for process in processes if is_of_live_run(facts, process))
    return Room(card, free, None if free is None else free + by_runs)


def _judge(room: Room, needs: Sequence[Need], is_certain: bool) -> Check:
    needed = sum(-(-(need.peak or 0) // MIB) for need in needs)
    each = " + ".join(f"{need.job} {_peak(need)}" for need in needs)
    asked = f"{each} = {mib_text(needed)}" if len(needs) > 1 else each
    where = f"GPU {room.card.index} ({room.card.name}, {mib_text(room.card.total)})"
    if room.now is None or room.later is None:
        hint = "watch nvidia-smi on the box while the jobs run"
        return warn(NAME, f"{where} does not report free memory; the rehearsal measured {asked}", hint)
    detail = f"{where}: needs {asked}; {mib_text(room.later)} available"
    if needed > room.later:
        hint = "give each job a whole GPU (`gpus = 1`), use a smaller batch or a larger GPU, or end what else uses it"
        return (fail if is_certain else warn)(NAME, detail, hint)
    return _fitting(room, needs, needed, detail)


def _fitting(room: Room, needs: Sequence[Need], needed: int, detail: str) -> Check:
    """What may still be in the way of jobs that fit as far as it is known."""
    assert room.now is not None and room.later is not None  # its caller has looked
    unknown = [need.job for need in needs if need.peak is None]
    if needed > room.now:
        return warn(
            NAME, f"{detail} once the running jobs have ended, {mib_text(room.now)} now", "wait until they have ended"
        )
    if unknown:
        hint = "a worker can report it: peak_gpu_bytes in results/rehearsal.json"
        return warn(NAME, f"{detail}; the need of {', '.join(unknown)} is unknown", hint)
    if needed + CONTEXT_MIB * len(needs) > room.later:
        hint = "a smaller batch leaves more room"
        return warn(NAME, f"{detail}, and CUDA itself takes about {mib_text(CONTEXT_MIB)} for each process", hint)
    return ok(NAME, detail)


def _peak(need: Need) -> str:
    return "?" if need.peak is None else mib_text(-(-need.peak // MIB))
