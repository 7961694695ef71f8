"""Runs on a box whose systemd-logind ends what a login has started (KillUserProcesses). All of it is real."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support import wait_until
from tests.systemd_box import USER, SystemdBox, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "it can run")

SPEC = """
[project]
name = "{name}"
[hosts.box]
ssh = "box"
gpus = 0
survive_reboot = false
launcher = "{launcher}"
[defaults]
host = "box"
rehearse = false
[jobs.train]
command = ["sleep", "600"]
"""
DENY = """
polkit.addRule(function(action, subject) {
    if (action.id == "org.freedesktop.login1.set-self-linger") return polkit.Result.NO;
});
"""


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdBox]:
    box = SystemdBox(tmp_path_factory.mktemp("systemd"))
    yield box
    box.close()


@pytest.fixture
def box(booted: SystemdBox) -> Iterator[SystemdBox]:
    booted.set_logind("KillUserProcesses=yes")
    yield booted
    booted.start("pkill", "-KILL", "-u", USER)
    booted.run("loginctl", "disable-linger", USER)
    wait_until(lambda: not booted.succeeds("loginctl", "show-user", USER), 30, "the end of the user's logins")


def orch(box: SystemdBox, *arguments: str, name: str = "test", launcher: str = "nohup") -> str:
    box.file(f"/tmp/{name}").mkdir(exist_ok=True)
    box.file(f"/tmp/{name}/jobs.toml").write_text(SPEC.format(name=name, launcher=launcher))
    done = box.start(sys.executable, "-m", "orchestrator.cli", *arguments, cwd=f"/tmp/{name}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def cgroup_of_worker(box: SystemdBox) -> str:
    """Return the cgroup of the job's process; "" if it has ended."""
    pids = box.start("pgrep", "-u", USER, "-x", "sleep").stdout.split()
    return box.run("sed", "-n", "s/^0:://p", f"/proc/{pids[0]}/cgroup").strip() if pids else ""


def wait_for_logout(box: SystemdBox, state: str) -> None:
    """Wait until the user has no login. Its state is "closing" if something of one is left."""
    wait_until(lambda: box.start("loginctl", "show-user", USER, "-p", "State").stdout == f"State={state}\n", 30, state)


@pytest.mark.parametrize("launcher", ["nohup", "tmux"])
def test_run_outlives_the_login_that_started_it(box: SystemdBox, launcher: str) -> None:
    before = orch(box, "doctor", "box", name=launcher, launcher=launcher)
    assert "warn  box: logout: systemd-logind ends what a login has started" in before
    assert not box.succeeds("test", "-e", f"/var/lib/systemd/linger/{USER}"), "doctor changes nothing"
    orch(box, "launch", "train", name=launcher, launcher=launcher)
    assert f"/user@{box.run('id', '-u', USER).strip()}.service/" in cgroup_of_worker(box)
    assert "ok    box: logout: " in orch(box, "doctor", "box", name=launcher, launcher=launcher)
    orch(box, "disconnect", name=launcher, launcher=launcher)
    wait_for_logout(box, "lingering")
    assert "running" in orch(box, "status", name=launcher, launcher=launcher)
    assert cgroup_of_worker(box)


def test_launch_warns_if_the_run_will_end_with_the_login(box: SystemdBox) -> None:
    box.file("/etc/polkit-1/rules.d/00-deny.rules").write_text(DENY)
    box.start("systemctl", "restart", "polkit")
    try:
        said = orch(box, "launch", "train", name="denied")
        assert "warn  box: logout: " in said and "runs will be killed when this user's last login ends" in said
        assert "ask an administrator of the box to run: loginctl enable-linger" in said
        assert cgroup_of_worker(box)
        orch(box, "disconnect", name="denied")
        wait_until(lambda: not cgroup_of_worker(box), 30, "the end of the run, with the login")
    finally:
        box.file("/etc/polkit-1/rules.d/00-deny.rules").unlink()
        box.start("systemctl", "restart", "polkit")


def test_user_without_a_systemd_of_their_own_is_warned(box: SystemdBox) -> None:
    unit = f"user@{box.run('id', '-u', USER).strip()}.service"
    box.run("systemctl", "mask", "--runtime", unit)
    try:
        said = orch(box, "launch", "train", name="unmanaged")
        assert "runs will be killed when the login ends that started them" in said
        assert "KillUserProcesses=no in /etc/systemd/logind.conf" in said
        orch(box, "disconnect", name="unmanaged")
        wait_until(lambda: not cgroup_of_worker(box), 30, "the end of the run, with the login")
    finally:
        box.run("systemctl", "unmask", "--runtime", unit)


@pytest.mark.parametrize(
    "settings", [["KillUserProcesses=no"], ["KillUserProcesses=yes", f"KillExcludeUsers=root {USER}"]]
)
def test_nothing_is_changed_where_logind_ends_nothing(box: SystemdBox, settings: list[str]) -> None:
    box.set_logind(*settings)
    assert "logout" not in orch(box, "launch", "train", name="plain")
    assert "/session-" in cgroup_of_worker(box)
    orch(box, "disconnect", name="plain")
    wait_for_logout(box, "closing")
    assert cgroup_of_worker(box)
    assert not box.succeeds("test", "-e", f"/var/lib/systemd/linger/{USER}")
