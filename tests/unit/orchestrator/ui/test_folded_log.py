"""What `orch tail` shows of bars: recorded, drawn by rich, and by hand as tqdm draws three nested ones."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress

from orchestrator.ui.folded_log import LONGEST, MOST_LINES, FoldedLog
from remote.agent.thinning import thin
from tests.support import RECORDED

OUTPUT = RECORDED / "output"
UP = b"\x1b[A"


def folded(*pieces: bytes) -> bytes:
    log = FoldedLog()
    return b"".join(map(log.feed, pieces)) + log.finish()


def settled(*pieces: bytes) -> tuple[bytes, list[bytes]]:
    """Return the lines that have settled, and the live ones."""
    log = FoldedLog()
    return b"".join(map(log.feed, pieces)), log.live


def nested(depth: int, count: int) -> bytes:
    """Return bars over `count` steps each, one in the other, as tqdm draws them; the inner ones remove themselves."""

    def draw(level: int, text: bytes) -> bytes:
        return b"\n" * level + b"\r" + text + UP * level

    def bar(level: int) -> bytes:
        drawn = b""
        for step in range(count):
            drawn += draw(level, b"level %d: %d/%d" % (level, step, count))
            drawn += bar(level + 1) if level + 1 < depth else b""
        last = draw(level, b"level %d: %d/%d" % (level, count, count))
        return drawn + (draw(level, b" " * 12 + b"\r") if level else last + b"\n")

    return bar(0)


def rich_bars(between: Sequence[str] = ()) -> bytes:
    """Return what rich writes for two bars, with lines printed above them."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=80, legacy_windows=False)
    with Progress(console=console, auto_refresh=False, transient=False) as progress:
        first, second = progress.add_task("epochs", total=4), progress.add_task("batches", total=100)
        for step in range(100):
            progress.update(second, completed=step + 1)
            if step % 25 == 24:
                progress.update(first, advance=1)
                for line in between:
                    console.print(f"{line} {step}")
            progress.refresh()
    return file.getvalue().encode()


# --- what is shown ------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([b"epoch 1", b" loss 0.5", b"\n", b"\r\n", b"\x1b[32mok\x1b[0m", b"\xc3", b"\t"])))
def test_plain_lines_are_unchanged(pieces: list[bytes]) -> None:
    assert folded(*pieces) == b"".join(pieces)


def test_plain_lines_settle_at_their_newline() -> None:
    assert settled(b"one\ntwo\nthr") == (b"one\ntwo\n", [b"thr"])
    assert settled(b"one\r", b"\ntwo\r\nthree") == (b"one\r\ntwo\r\n", [b"three"])


def test_redrawn_line_is_its_last_frame() -> None:
    log = FoldedLog()
    assert log.feed(b"start\n" + b"".join(b"\r%3d%%" % percent for percent in range(50))) == b"start\n"
    assert log.live == [b" 49%"]
    assert log.feed(b"\r100%\ndone\n") == b"100%\ndone\n"
    assert log.live == []


def test_frame_that_ends_in_a_carriage_return_stays_visible() -> None:
    assert settled(b" 10%\r 20%\r") == (b"", [b" 20%"])


def test_bars_one_after_the_other_settle() -> None:
    bars = [b"".join(b"\repoch %d: %d/9" % (epoch, step) for step in range(10)) + b"\n" for epoch in range(3)]
    assert settled(*bars, b"\repoch 3: 0/9\repoch 3: 1/9") == (
        b"epoch 0: 9/9\nepoch 1: 9/9\nepoch 2: 9/9\n",
        [b"epoch 3: 1/9"],
    )


NESTED = {
    "tqdm-nested.log": [b"Epochs: 100%"],
    "tqdm-nested_plain.log": [b"100%"],
    "tqdm-epochs.log": [b"Epoch 1/3: 100%", b"epoch 1/3 train", b"Epoch 2/3: 100%", b"epoch 2/3", b"Epoch 3/3: 100%"],
    "tqdm-postfix.log": [b"train: 100%"],
}


@pytest.mark.parametrize("name", NESTED)
def test_recorded_bars_are_one_line_each(name: str) -> None:
    lines = folded((OUTPUT / name).read_bytes()).splitlines()
    assert len(lines) - len(NESTED[name]) in (0, 1)
    for line, start in zip(lines, NESTED[name], strict=False):
        assert line.startswith(start)


@pytest.mark.parametrize("depth", [2, 3])
def test_nested_bars_are_one_live_block(depth: int) -> None:
    data = b"loading\n" + nested(depth, 5)
    lines = folded(data + b"accuracy 0.9\n").splitlines()
    assert lines[:3] == [b"loading", b"level 0: 5/5", b"accuracy 0.9"]
    assert all(not line.strip() for line in lines[3:])  # where the inner bars were
    middle = data.index(b"level 1: 3/5")
    assert settled(data[: middle + 12]) == (b"loading\n", [b"level 0: 0/5", b"level 1: 3/5"])


def test_bars_of_rich_are_one_live_block() -> None:
    lines = folded(rich_bars(["validated at"])).decode().splitlines()
    assert lines[:4] == [f"validated at {step}" for step in (24, 49, 74, 99)]
    assert [line.split()[0] for line in lines[4:6]] == ["epochs", "batches"]
    assert all("100%" in line for line in lines[4:6])
    assert len(lines) <= 7


# --- limits and pieces ----------------------------------------------------------------------------------------


def bars() -> list[bytes]:
    recorded = [path.read_bytes() for path in sorted(Path(OUTPUT).glob("*.log"))]
    return [*recorded, nested(2, 6), nested(3, 4), rich_bars(), rich_bars(["validated at", "saved at"])]


@pytest.mark.parametrize("number", range(len(bars())))
def test_result_does_not_depend_on_the_pieces_and_on_thinning(number: int) -> None:
    data = bars()[number]
    whole = folded(data)
    assert folded(*(data[at : at + 1] for at in range(len(data)))) == whole
    for size in (500, 3000, 1 << 16):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert folded(*(piece[begin:end] for piece in pieces for begin, end in thin(piece))) == whole


def test_live_lines_are_limited() -> None:
    lines = [b"\rbar %d" % number for number in range(3 * MOST_LINES)]
    log = FoldedLog()
    before = log.feed(b"\n".join(lines))
    assert len(log.live) <= MOST_LINES + 1
    assert before + log.finish() == b"\n".join(line[1:] for line in lines)


def test_long_line_is_passed_on_in_parts() -> None:
    log = FoldedLog()
    assert log.feed(b"x" * (LONGEST + 1)) == b"x" * (LONGEST + 1)
    assert log.feed(b"y\n") == b"y\n"


@pytest.mark.parametrize("seed", range(20))
def test_plain_lines_settle_at_once_as_they_do_one_by_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = random.Random(seed)
    pieces = [
        b"a line\n",
        b"\n",
        b"crlf\r\n",
        b"part",
        b"\rbar 1",
        b"\x1b[31mred\x1b[0m\n",
        b"\x1b[A",
        b"\x1b[K",
        b"\x1b[2K",
    ]
    fed = [b"".join(chosen.choices(pieces, [30, 5, 5, 5, 3, 5, 1, 1, 1], k=12)) for _ in range(60)]

    def shown() -> list[object]:
        log = FoldedLog()
        return [*((log.feed(data), log.live) for data in fed), log.finish()]

    at_once = shown()
    monkeypatch.setattr(FoldedLog, "_settle_plain", lambda log, data, end: 0)
    assert shown() == at_once
