"""Tests of what the benchmarks stand on: the judgement of a figure, the page, the link with a delay."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple

import pytest

from bench.__main__ import QUICK, Size
from bench.figures import Figure, Limit, interleaved
from bench.performance import TEMPLATE, page, row
from tests.delayed_link import DelayedLink


@pytest.mark.parametrize(
    ("limit", "reached"),
    [
        (Limit(2.0), True),
        (Limit(1.9), False),
        (Limit(2000, "ms"), True),
        (Limit(1999, "ms"), False),
        (Limit(1000, "added ms"), True),
        (Limit(999, "added ms"), False),
        (Limit(2, "count"), True),
        (Limit(1, "count"), False),
        (None, True),
    ],
)
def test_figure_is_judged_by_the_median_of_its_pairs(limit: Limit | None, reached: bool) -> None:
    figure = Figure("status", "ssh", [2.0, 9.0, 2.0], [1.0, 1.0, 1.0], limit)
    assert figure.reached is reached
    assert row(figure)[-1] == ("" if limit is None else "reached" if reached else "missed")


def test_count_has_no_reference() -> None:
    figure = Figure("exchanges", "", [2.0], [], Limit(1, "count"))
    assert (figure.reference_median, figure.ratios, figure.reached) == (None, [], False)
    assert row(figure) == ("exchanges", "", "2", "", "", "", "1", "missed")


def test_repetitions_are_interleaved_and_the_first_does_not_count() -> None:
    order: list[str] = []

    def way(name: str) -> int:
        order.append(name)
        return len(order)

    assert interleaved(2, {"a": lambda: way("a"), "b": lambda: way("b")}) == {"a": [3, 5], "b": [4, 6]}
    assert order == ["a", "b"] * 3


def test_page_names_each_missed_figure_once() -> None:
    missed = [Figure("slow", "ssh", [9.0], [1.0], Limit(1.5), delay) for delay in (0, 80)]
    text = page([*missed, Figure("fast", "ssh", [1.0], [1.0], Limit(1.5))], {"cores": 2})
    assert len(re.findall(r"^\| slow \|", text.partition("## What was missed")[2], re.MULTILINE)) == 1
    assert "| fast |" not in text.partition("## What was missed")[2]
    assert "| cores | 2 |" in text


def test_prose_of_the_page_wraps_at_100() -> None:
    assert [line for line in TEMPLATE.template.splitlines() if len(line) > 100] == []


def test_quick_size_is_smaller() -> None:
    assert all(quick < full for quick, full in zip(astuple(QUICK), astuple(Size()), strict=True))


def test_delayed_link_forwards_bytes_and_their_end_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_echo_once, args=(server,))
        thread.start()
        link = DelayedLink(server.getsockname()[1], 0.05)
        with link, socket.create_connection(("127.0.0.1", link.port), timeout=30) as client:
            began = time.monotonic()
            sent = bytes(range(256)) * 400
            client.sendall(sent)
            received = client.recv(1)
            assert time.monotonic() - began >= 0.1
            client.shutdown(socket.SHUT_WR)
            received += b"".join(_all(client))
        thread.join()
    assert received == sent


def _echo_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        for data in _all(connection):
            connection.sendall(data)


def _all(connection: socket.socket) -> Iterator[bytes]:
    return iter(lambda: connection.recv(1 << 16), b"")
