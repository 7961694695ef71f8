"""Targets of the laptop's side: parsers of the output of boxes, git, ssh and rsync, and of jobs.toml."""

from __future__ import annotations

import io
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from unicodedata import category

from orchestrator import text
from orchestrator.box import host_facts, probe
from orchestrator.box.client import Box
from orchestrator.box.copied_files import files_at_end
from orchestrator.box.inventory import Inventory, read_page
from orchestrator.box.known_runs import KnownRun
from orchestrator.box.reports import read_report, read_reports
from orchestrator.box.transport import MAX_FRAME_BYTES, read_frames, read_reply
from orchestrator.checks import rehearsal
from orchestrator.code.git import readable_patch
from orchestrator.code.globs import matches
from orchestrator.code.secret_files import by_content, by_name
from orchestrator.commands.init import write_spec
from orchestrator.errors import OrchError
from orchestrator.spec.load import load
from orchestrator.ssh.command import last_line
from orchestrator.ssh.config import Destination
from orchestrator.ssh.endpoint import endpoint_of, parse_options, split_paths
from orchestrator.ssh.known_hosts import parse_known_keys
from orchestrator.ssh.rsync import SentBytes
from orchestrator.ui import run_text, serialize
from orchestrator.ui.folded_log import FoldedLog
from remote.contract.answers import Answer
from remote.contract.launches import FactsReply, LaunchRequest, RunEntry
from remote.contract.paths import RunPaths
from remote.contract.protocol import STATES
from remote.contract.replies import InventoryReply
from remote.contract.requests import Request, Where
from remote.contract.run_record import CodeRecord, HostRecord, JobRecord
from remote.contract.run_report import RunReport, report
from remote.contract.schema import Malformed, from_json, to_json
from remote.contract.states import recorded
from tests.canned_box import CannedTransport, box_with
from tests.fuzz.source import Source, Target, text_of

RUN = ("worker1", "20260126T210312-7f3a")
PAGE = {"path": "/box/" + "/".join(RUN), "report": {"job": RUN[0], "run_id": RUN[1]}, "files": [["run.json", 1, 2]]}
GOOD = {
    "job": RUN[0],
    "run_id": RUN[1],
    "now": 2.0,
    "supervised": True,
    "state": {"schema": 1, "state": "running", "since": 1.0, "attempt": 1, "pid": 4711, "identity": "1"},
    "heartbeat": {"phase": "train", "epoch": 1, "epochs": 3, "step": 1, "steps": 2, "eta_s": 10.0},
    "metrics": {"loss": 0.5},
    "goals": {"loss": "< 1"},
}
KEYS = [
    *(
        *RunReport.__dataclass_fields__,
        *STATES,
        *RUN,
        "state",
        "since",
        "attempt",
        "pid",
        "identity",
        "boot",
        "reason",
        "detail",
    ),
    *("phase", "epoch", "epochs", "step", "steps", "eta_s", "loss", "< 1", "waiting_for", "not_before", "exit_code"),
    *(
        "runs",
        "files",
        "have_code",
        "unrehearsed",
        "offset",
        "report",
        "answers",
        "jobs",
        "out",
        "err",
        "code",
        "value",
    ),
    *("error", "absent", "now", "gpus", "gpu_apps", "disk", "memory", "rsync", "tmux", "timers", "seconds_total"),
]
FOLDER = Path(tempfile.mkdtemp(prefix="orch-fuzz-"))


def reply(data: bytes) -> None:
    assert isinstance(read_reply("box", data), dict)


def frames(data: bytes) -> None:
    for frame in read_frames("box", io.BytesIO(data)):
        assert len(frame.data) <= MAX_FRAME_BYTES


def one_report(data: bytes) -> None:
    run = read_report("box", {**GOOD, **Source(data, KEYS).table()})
    _say(run)


def _say(run: RunReport) -> None:
    assert run_text.line(run).isprintable()
    assert run_text.progress(run).isprintable()
    json.dumps(serialize.run_to_json(run))
    rehearsal.cause(run, "")


def reports(data: bytes) -> None:
    source = Source(data, KEYS)
    read_report("box", source.value())
    read_reports("box", [source.value()])


def mirrored(data: bytes) -> None:
    """Parse a run's files as a box sent them."""
    run = RunPaths(FOLDER / RUN[0] / RUN[1])
    run.root.mkdir(parents=True, exist_ok=True)
    for name, said in zip(
        ("run.json", "state.json", "heartbeat.json", "latest_metrics.json"), data.split(b"\xff"), strict=False
    ):
        (run.root / name).write_bytes(said)
    _say(read_report("box", to_json(report(run, recorded(run), supervised=None))))


def listing(data: bytes) -> None:
    try:
        page = from_json(InventoryReply, Source(data, KEYS).table(), longest=None)
    except Malformed:
        return
    for name in read_page("box", page)[0]:
        assert ".." not in name.split("/") and not name.startswith("/")


def listings(data: bytes) -> None:
    """Read replies about the files of two runs, until they are listed or a reply is refused."""
    source = Source(data, KEYS)

    class Replies(CannedTransport):
        def call(self, request: Request) -> dict[str, Any]:
            entries = [source.table() if source.byte() % 4 else {"page": {**PAGE, **source.table()}} for _ in range(2)]
            return {"runs": entries[: 1 + source.byte() % 2]}

    for name, found in Box(Replies(), Where("/box", "fuzz")).inventories([RUN, (RUN[0], "20260126T210313-0000")]):
        if isinstance(found, Inventory):
            assert (found.report.job, found.report.run_id) == name and found.path.endswith("/".join(name))


def checksums(data: bytes) -> None:
    for found in box_with({"files": Source(data, KEYS).value()}).checksums([(*RUN, "a")]).values():
        assert len(found.checksum) == 64


def outputs_at_end(data: bytes) -> None:
    """Parse the list of a run's outputs as a box sent it."""
    root = FOLDER / "outputs"
    root.mkdir(parents=True, exist_ok=True)
    (root / "outputs.jsonl").write_bytes(data)
    files_at_end(root, Inventory(str(root), {"outputs.jsonl": len(data)}, (), RunReport(*RUN)))


def known_run(data: bytes) -> None:
    KnownRun.read(*RUN, Source(data, KEYS).table())


def code_file(data: bytes) -> None:
    by_name(text_of(data[:200]))
    by_content(data)


def answer(data: bytes) -> None:
    entry = RunEntry(RUN[1], JobRecord(RUN[0]))
    request = LaunchRequest(HostRecord(), CodeRecord("0" * 64), (entry,), rehearsed={RUN[0]: "key"})
    box_with(Source(data, KEYS).table()).launch(request)


def log_frame(data: bytes) -> None:
    assert all(piece.offset >= 0 for piece in box_with(Source(data, KEYS).table(), data).follow(RUN[0], None))


def box_facts(data: bytes) -> None:
    try:
        reply = from_json(FactsReply, Source(data, KEYS).table(), longest=None)
    except Malformed:
        return
    host_facts.read_facts(reply, host_facts.read_clock(reply, 1.0, 1.0))


def answers(data: bytes) -> None:
    text = text_of(data)
    for said in (Answer(out=text, code=0), Answer(err=text, code=1), Answer(value=Source(data, KEYS).value())):
        for parse in PARSERS:
            parse(said)


PARSERS = [
    *(probe.parse_gpus, probe.parse_gpu_processes, probe.parse_gpu_owners, probe.parse_disk, probe.parse_memory),
    *(probe.parse_rsync, probe.parse_tmux, probe.parse_job_python, probe.parse_reboot),
    *(probe.parse_text, host_facts.parse_job),
]


def rehearsal_log(data: bytes) -> None:
    text = text_of(data)
    rehearsal.log_excerpt(text)
    rehearsal.cause(
        read_report("box", {**GOOD, "state": {"state": "failed", "since": 1, "reason": "exit", "detail": text}}), text
    )


def rsync_words(data: bytes) -> None:
    assert len(last_line(data)) <= 300


def rsync_progress(data: bytes) -> None:
    """The bytes that are counted do not depend on where the pieces end."""
    whole: list[int] = []
    pieces: list[int] = []
    SentBytes(whole.append).feed(data)
    said = SentBytes(pieces.append)
    said.feed(data[: len(data) // 2])
    said.feed(data[len(data) // 2 :])
    assert all(size >= 0 for size in whole) and (len(data) > 200 or pieces == whole)


def ssh_options(data: bytes) -> None:
    assert endpoint_of("box", parse_options(text_of(data))).port > 0


def known_hosts(data: bytes) -> None:
    text = text_of(data)
    parse_known_keys(("box", "[box]:22"), text.splitlines())
    split_paths(text)


def destination(data: bytes) -> None:
    assert not Destination.parse(text_of(data)).host.startswith("-")


def patch(data: bytes) -> None:
    json.dumps(readable_patch(data, []))


def jobs_toml(data: bytes) -> None:
    path = FOLDER / "jobs.toml"
    path.write_bytes(data)
    load(path)


def globs(data: bytes) -> None:
    path, *patterns = text_of(data).split("\n")
    patterns = [pattern for pattern in patterns if pattern.count("*") < 6][:8]  # more stars take as long as in git
    with suppress(ValueError):  # the check of jobs.toml refuses invalid patterns
        matches(path, patterns)


def terminal_text(data: bytes) -> None:
    assert "\x1b" not in text.log_text(data)
    assert not [char for char in text.clean(text_of(data)) if category(char) in ("Cc", "Cf", "Cs") and char != "\t"]


def folded(data: bytes) -> None:
    """The lines that settle do not depend on where the pieces of a log end."""
    log, whole = FoldedLog(), FoldedLog()
    middle = len(data) // 2
    said = log.feed(data[:middle]) + log.feed(data[middle:]) + log.finish()
    assert said == whole.feed(data) + whole.finish()
    assert len(said) <= len(data) + 1 and len(log.live) <= 1


def first_jobs_toml(data: bytes) -> None:
    """Whatever the files of a repository hold, `orch init` writes a jobs.toml that loads."""
    names = ("train.py", "README.md", "conf/config.yaml", "pyproject.toml")
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        folder = Path(name)
        (folder / "conf").mkdir()
        for file, content in zip(names, data.split(b"\0", len(names) - 1), strict=False):
            (folder / file).write_bytes(content)
        load(write_spec(folder).path)


TARGETS: list[Target] = [
    *(
        reply,
        frames,
        one_report,
        reports,
        mirrored,
        listing,
        listings,
        checksums,
        answer,
        log_frame,
        box_facts,
        answers,
        rehearsal_log,
    ),
    *(known_run, code_file, rsync_words, ssh_options, known_hosts, destination, patch, jobs_toml, globs, terminal_text),
    *(folded, rsync_progress, outputs_at_end, first_jobs_toml),
]
PROPER = (OrchError,)
SAMPLES = {
    "folded": "tests/unit/recorded/output/*.log",
    "answers": "tests/unit/recorded/*",
    "rsync_words": "tests/unit/recorded/rsync*",
    "reply": "tests/contract/v1/replies.jsonl",
    "frames": "tests/contract/v1/follow.frames",
    "jobs_toml": "jobs.toml",
    "first_jobs_toml": "tests/scripts/*/*.py",
    "mirrored": "tests/contract/v*/runs/**/run.json",
}
