"""`doctor` and its facts, on this machine and over a real sshd.

There is no GPU here: where one is needed, an `nvidia-smi` on the box's PATH prints a recorded output.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import paramiko
import pytest

from orchestrator.checks.check import Check
from orchestrator.checks.preflight import check_host, check_job
from orchestrator.commands.doctor import host_checks, laptop_checks, local_rsync
from orchestrator.commands.project import Project
from remote.contract import protocol
from tests.integration.conftest import Orch
from tests.support import PROC, RECORDED, SSHD, SshdBox


def doctor(orch: Orch) -> dict[str, Check]:
    project = Project.open(orch.project)
    try:
        host = project.spec.host(orch.host)
        checks = host_checks(project.box(orch.host), host)
    finally:
        project.close()
    return {check.name: check for check in checks}


def preflight(orch: Orch, name: str) -> dict[str, Check]:
    """Return the checks of one job after its code was uploaded."""
    tree = orch.json("sync", "--code")["code"][0]["tree"]
    project = Project.open(orch.project)
    try:
        job, host = project.spec.job(name), project.spec.host(orch.host)
        facts = project.box(orch.host).facts(host, [job], tree)
    finally:
        project.close()
    checks = check_host(facts, host, job.gpus, rsync_here=local_rsync()) + check_job(facts, job, os.environ)
    return {check.name: check for check in checks}


OF_THIS_MACHINE = {"ssh here", "rsync here", "ssh server", "rsync version", "key exchange"}  # by its versions


def bad(checks: dict[str, Check]) -> dict[str, str]:
    """Return the checks that did not pass, except `reboot`, which has its own test, and warnings of old versions."""
    judged = [check for check in checks.values() if not (check.status == "warn" and check.name in OF_THIS_MACHINE)]
    return {check.name: check.detail for check in judged if check.status != "ok" and check.name != "reboot"}


def with_path(box: SshdBox, folder: Path) -> None:
    """Put `folder` first on the PATH of the box."""
    box.stop()
    box.env["PATH"] = f"{folder}{os.pathsep}{box.env['PATH']}"
    box.start()


def replay(folder: Path, gpus: str, apps: str, code: int) -> None:
    folder.mkdir()
    (folder / "gpus").write_text(gpus)
    (folder / "apps").write_text(apps)
    script = f'#!/bin/sh\ncase "$1" in *apps*) cat {folder}/apps;; *) cat {folder}/gpus;; esac\nexit {code}\n'
    (folder / "nvidia-smi").write_text(script)
    (folder / "nvidia-smi").chmod(0o755)


# --- doctor ---------------------------------------------------------------------------------------------


def test_laptop_with_its_tools_passes() -> None:
    checks = {check.name: check for check in laptop_checks()}
    assert bad(checks) == {}
    assert "OpenSSH" in checks["ssh here"].detail and "rsync" in checks["rsync here"].detail


def test_missing_laptop_tools_fail_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = {check.name: check for check in laptop_checks()}
    assert set(bad(checks)) == {"rsync here", "ssh here"}
    assert "brew install rsync" in checks["rsync here"].hint


def test_local_host_passes(local_orch: Orch) -> None:
    local_orch.job("train")
    checks = doctor(local_orch)
    assert bad(checks) == {}
    assert {"connection", "python", "disk", "memory", "gpu"} <= set(checks)
    assert not {"rsync", "clock"} & set(checks)


def test_ssh_host_passes(ssh_orch: Orch) -> None:
    ssh_orch.host_table += 'client = "openssh"\n'
    ssh_orch.job("train")
    checks = doctor(ssh_orch)
    assert bad(checks) == {}
    assert "connected to box" in checks["connection"].detail and "round trip" in checks["connection"].detail
    assert ssh_orch.box is not None
    assert checks["ports"].detail == (
        f"127.0.0.1:{ssh_orch.box.port}; timeouts: 10 s to connect, 45 s without an answer"
    )
    assert "this machine" in checks["clock"].detail
    assert f"on {ssh_orch.host}" in checks["rsync"].detail


def test_rsync_is_not_asked_for_if_no_host_needs_it(ssh_orch: Orch) -> None:
    ssh_orch.host_table += 'client = "fabric"\n'
    ssh_orch.job("train")
    checked = ssh_orch.json("doctor")["checks"]
    assert {check["name"] for check in checked} & {"rsync", "rsync here", "ssh here"} == set()
    assert "python" in {check["name"] for check in checked}


def offers_post_quantum(box: SshdBox, client: str) -> bool:
    """Return whether the server and the client have a post-quantum key exchange in common by default."""
    assert SSHD is not None
    server = subprocess.run([SSHD, "-T", "-f", str(box.folder / "sshd_config")], capture_output=True, text=True).stdout
    offered = set(next(line for line in server.splitlines() if line.startswith("kexalgorithms ")).split()[1].split(","))
    ssh = subprocess.run(["ssh", "-G", "-F", str(box.config), "box"], capture_output=True, text=True).stdout
    ours = set(next(line for line in ssh.splitlines() if line.startswith("kexalgorithms ")).split()[1].split(","))
    if client == "fabric":
        ours &= set(paramiko.Transport._preferred_kex)
    return any(kex.startswith(("mlkem", "sntrup")) for kex in offered & ours)


@pytest.mark.parametrize("client", ["openssh", "fabric"])
def test_key_exchange_is_judged_as_negotiated(ssh_orch: Orch, client: str) -> None:
    ssh_orch.host_table += f'client = "{client}"\n'
    ssh_orch.job("train")
    box = ssh_orch.box
    assert box is not None
    checks = doctor(ssh_orch)
    assert checks["key exchange"].status == ("ok" if offers_post_quantum(box, client) else "warn")
    assert checks["ssh server"].detail.startswith("OpenSSH_")
    box.options["KexAlgorithms"] = "curve25519-sha256,curve25519-sha256@libssh.org"
    box.restart()
    check = doctor(ssh_orch)["key exchange"]
    assert check.status == "warn" and check.detail.startswith("curve25519-sha256")
    assert ssh_orch.run("doctor", "gpu1").returncode == 0


def test_asking_for_the_key_exchange_does_not_log_in(sshd_box: SshdBox) -> None:
    transport = sshd_box.openssh()
    seen = transport.handshake()
    assert seen is not None and seen.software.startswith("OpenSSH_") and "x25519" in seen.kex
    assert sshd_box.logins() == 0
    sshd_box.stop()
    assert transport.handshake() is None


def test_jump_host_is_not_taken_for_the_host(sshd_box: SshdBox, tmp_path: Path) -> None:
    (tmp_path / "jump").mkdir()
    jump = SshdBox(tmp_path / "jump")
    jump.options["KexAlgorithms"] = "ecdh-sha2-nistp256"
    jump.start()
    try:
        sshd_box.config.write_text(jump.config.read_text().replace("Host box", "Host jump"))
        sshd_box.add_host("box", ProxyJump="jump")
        seen = sshd_box.openssh().handshake()
        assert seen is not None and "x25519" in seen.kex
        assert jump.logins() == 1
    finally:
        jump.close()


def test_host_that_is_down_is_a_failed_check(ssh_orch: Orch) -> None:
    ssh_orch.job("train")
    assert ssh_orch.box is not None
    ssh_orch.box.stop()
    checks = doctor(ssh_orch)
    found = [(check.name, check.status) for check in checks.values()]
    assert found == [("ports", "ok"), ("client", "ok"), ("connection", "fail")]
    assert f":{ssh_orch.box.port}): the port refused the connection" in checks["connection"].detail
    assert "sshd" in checks["connection"].hint


def test_unknown_host_key_fails_with_the_command_to_pin_it(ssh_orch: Orch) -> None:
    ssh_orch.job("train")
    assert ssh_orch.box is not None
    ssh_orch.box.known_hosts.write_text("")
    check = doctor(ssh_orch)["connection"]
    assert check.status == "fail"
    assert ssh_orch.box.fingerprint() in check.detail + check.hint
    assert "orch trust" in check.hint


CRONTAB = '#!/bin/sh\necho "no crontab for $USER" >&2\nexit 1\n'


def test_missing_reboot_method_is_a_warning(ssh_orch: Orch, tmp_path: Path) -> None:
    ssh_orch.job("train")
    assert "reboot" not in doctor(ssh_orch)  # the host's table has survive_reboot = false
    ssh_orch.host_table = ssh_orch.host_table.replace("survive_reboot = false\n", "")
    ssh_orch.job("train")
    assert ssh_orch.box is not None
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "systemctl").write_text("#!/bin/sh\necho offline\nexit 1\n")
    (tools / "crontab").write_text("#!/bin/sh\necho 'you are not allowed to use this program' >&2\nexit 1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    with_path(ssh_orch.box, tools)
    check = doctor(ssh_orch)["reboot"]
    assert (check.status, check.hint) == ("warn", "on the box: sudo apt-get install cron")
    assert check.detail.startswith("runs will not continue after a reboot: ")
    (tools / "crontab").write_text(CRONTAB)
    (tmp_path / "cron").symlink_to("/bin/sleep")  # only the name is checked
    with subprocess.Popen([str(tmp_path / "cron"), "600"]) as daemon:
        try:
            assert doctor(ssh_orch)["reboot"].status == "ok"
        finally:
            daemon.kill()


def test_missing_tmux_is_reported(ssh_orch: Orch, tmp_path: Path) -> None:
    ssh_orch.host_table += 'client = "openssh"\n'
    ssh_orch.host_table = ssh_orch.host_table.replace('"nohup"', '"tmux"')
    ssh_orch.job("train")
    bare = tmp_path / "bare"
    bare.mkdir()
    assert ssh_orch.box is not None
    ssh_orch.box.stop()
    ssh_orch.box.env["PATH"] = str(bare)
    ssh_orch.box.start()
    checks = bad(doctor(ssh_orch))
    assert checks == {
        "launcher": '`launcher = "tmux"`, but tmux is not installed on the box',
        "rsync": f"not installed on {ssh_orch.host}",
    }


@pytest.mark.skipif(not PROC.is_dir(), reason="reads /proc")
def test_orphan_on_the_gpu_is_reported_and_left_running(ssh_orch: Orch, tmp_path: Path) -> None:
    ssh_orch.host_table = ssh_orch.host_table.replace("gpus = 0", "gpus = 1")
    ssh_orch.job("train", "exit=0", gpus=0)
    ssh_orch.run("launch", "train", "--wait")
    run = ssh_orch.on_box("train")
    orphan = subprocess.Popen(["sleep", "600"], env={**os.environ, protocol.ENV_RUN_DIR: str(run.root)})
    try:
        cards = (RECORDED / "gpus-t4-held.txt").read_text()
        apps = (RECORDED / "gpu-apps-t4-held.txt").read_text().replace("21784", str(orphan.pid))
        replay(tmp_path / "bin", cards, apps, 0)
        assert ssh_orch.box is not None
        with_path(ssh_orch.box, tmp_path / "bin")
        checks = doctor(ssh_orch)
        assert checks["gpu"].status == "ok" and "Tesla T4" in checks["gpu"].detail
        assert checks["gpu memory"].status == "fail" and "628 MiB free of 15.0 GiB" in checks["gpu memory"].detail
        assert f"left over from run train {run.run_id}, which has ended" in checks["gpu process"].detail
        assert checks["gpu process"].hint == f"on the box: kill {orphan.pid}"
        assert orphan.poll() is None
    finally:
        orphan.kill()
        orphan.wait()


def test_broken_gpu_driver_fails(ssh_orch: Orch, tmp_path: Path) -> None:
    ssh_orch.host_table = ssh_orch.host_table.replace("gpus = 0", "gpus = 1")
    ssh_orch.job("train")
    replay(tmp_path / "bin", (RECORDED / "gpus-mismatch.txt").read_text(), "", 18)
    assert ssh_orch.box is not None
    with_path(ssh_orch.box, tmp_path / "bin")
    check = doctor(ssh_orch)["gpu"]
    assert (check.status, "Driver/library version mismatch" in check.detail) == ("fail", True)
    assert "restart the box" in check.hint


# --- preflight ------------------------------------------------------------------------------------------


def test_job_that_can_run_passes(ssh_orch: Orch, tmp_path: Path) -> None:
    data = tmp_path / "data" / "output"
    data.mkdir(parents=True)
    for index in range(3):
        (data / f"augmented_traj_{index}.pt").write_bytes(bytes(1000))
    wanted = {"path": str(data.parent), "pattern": "output/augmented_traj_*.pt", "at_least": 3}
    ssh_orch.job("train", data=wanted)
    checks = preflight(ssh_orch, "train")
    assert bad(checks) == {}
    assert checks["command"].detail.startswith("script worker.py, run by ")
    assert checks["data"].detail.endswith("read 3 to test (1 kB, 1 kB, 1 kB)")


def test_all_problems_are_reported_at_once(ssh_orch: Orch, tmp_path: Path) -> None:
    output = tmp_path / "data" / "output"
    output.mkdir(parents=True)
    (output / "augmented_traj_0.pt").write_bytes(b"x")
    wanted = {"path": str(output.parent), "pattern": "*.npy"}
    ssh_orch.table("train", command=["python", "trian.py"], data=wanted, secrets=["NO_SUCH_TOKEN"])
    checks = preflight(ssh_orch, "train")
    assert bad(checks) == {
        "command": "'trian.py' is not in the code that was sent",
        "data": f"0 files match *.npy in {output.parent}; the job needs 1",
        "secrets": "NO_SUCH_TOKEN not set on this machine",
    }
    assert "1 output/*.pt" in checks["data"].hint


def test_refused_check_shows_each_problem_with_its_hint(local_orch: Orch) -> None:
    local_orch.table("first", command=["python", "frist.py"])
    local_orch.table("second", command=["python", "worker.py"], data={"path": "/no/such/data"})

    refused = local_orch.run("check", "first", "second", code=4).stderr.splitlines()

    assert [line.partition("; ")[0] for line in refused] == [
        "orch: checking jobs on local: first: command: 'frist.py' is not in the code that was sent",
        "second: data: no directory /no/such/data",
    ]
    assert "correct its path" in refused[0] and "`data.path`" in refused[1]


def test_running_job_fails_until_it_has_ended(local_orch: Orch) -> None:
    local_orch.job("train", "go")
    local_orch.launch("train")
    local_orch.wait_for("train", "running")
    assert list(bad(preflight(local_orch, "train"))) == ["other run"]
    local_orch.open("go")
    local_orch.wait_for("train", "succeeded")
    assert bad(preflight(local_orch, "train")) == {}
