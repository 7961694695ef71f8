"""Whether systemd-logind ends what a login has started. With a real one: tests/integration/test_logind.py."""

from __future__ import annotations

import pytest

from remote.contract.logout_outcome import UNTOUCHED, Logout
from remote.host import logout


@pytest.mark.parametrize(
    ("answer", "user", "kills"),
    [
        ("b true\nas 0\nas 0\n", "ann", True),
        ("b false\nas 0\nas 0\n", "ann", False),
        ("b true\nas 0\nas 0\n", "root", False),  # excluded by default
        ('b true\nas 0\nas 1 "ann"\n', "ann", False),
        ('b true\nas 0\nas 1 "ann"\n', "root", True),
        ('b true\nas 0\nas 2 "root" "bob"\n', "ann", True),
        ('b true\nas 1 "bob"\nas 0\n', "ann", False),  # the list replaces KillUserProcesses
        ('b false\nas 2 "ann" "bob"\nas 0\n', "ann", True),
        ('b false\nas 1 "ann"\nas 1 "ann"\n', "ann", False),
        ("", "ann", False),
        ("b true\n", "ann", False),
        ("Failed to get property\nb true\nas 0\nas 0\n", "ann", False),
    ],
)
def test_settings_of_logind_decide_for_a_user(answer: str, user: str, kills: bool) -> None:
    assert logout.kills(answer, user) == kills


@pytest.mark.parametrize(
    ("cgroup", "is_login"),
    [
        (b"0::/user.slice/user-1001.slice/session-61.scope\n", True),
        (b"5:pids:/user.slice\n1:name=systemd:/user.slice/user-1001.slice/session-c2.scope\n0::/\n", True),
        (b"0::/user.slice/user-1001.slice/user@1001.service/app.slice/run-rfa04390288784b7a.scope\n", False),
        (b"0::/system.slice/ssh.service\n", False),
        (b"0::/docker/session-1\n", False),
        (b"", False),
    ],
)
def test_login_is_told_by_the_cgroup(
    cgroup: bytes, is_login: bool, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tools = tmp_path_factory.mktemp("tools")
    (tools / "busctl").write_text(f"#!/bin/sh\necho asked >> {tools}/asked\nprintf 'b true\\nas 0\\nas 1 \"x\"\\n'\n")
    (tools / "busctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(logout, "read_proc", lambda *names: cgroup)
    assert logout.ends_with_login() == is_login
    assert (tools / "asked").exists() == is_login, "no process is started outside of a login"


def test_box_without_busctl_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(logout, "read_proc", lambda *names: b"0::/user.slice/user-0.slice/session-1.scope\n")
    assert logout.find_logout() == Logout(UNTOUCHED)
    assert logout.outliving_argv.__wrapped__() == []
