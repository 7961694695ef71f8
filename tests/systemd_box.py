"""A box with a real systemd, systemd-logind, polkit and sshd (with PAM), in namespaces of its own.

Its files are those of this machine under an overlay in memory, so nothing that it does reaches this machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.support import ROOT, SSHD, descendants, name_of, wait_until

SYSTEMD = Path("/usr/lib/systemd/systemd")
NEEDED = (
    SYSTEMD,
    SYSTEMD.with_name("systemd-logind"),
    Path("/usr/bin/dbus-daemon"),
    Path("/usr/bin/pkcheck"),
    Path("/usr/sbin/useradd"),
)
USER = "ann"

# Runs as root in new namespaces. Arguments: a folder to mount on, and what to show of this machine, read-only.
BOOT = r"""
set -eu
mount --make-rprivate /
base=$1; shift
mount -t tmpfs tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$base/root"
cd "$base/root"
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs run
for shown; do
    mkdir -p ".$shown"; mount --bind "$shown" ".$shown"; mount -o remount,ro,bind ".$shown"
done
mount -t proc proc proc
mount --bind proc/sys proc/sys; mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for device in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 "dev/${device%:*}" c 1 "${device#*:}"; done
mknod -m 666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ip link set lo up

# Only what is named below is started.
rm -rf etc/systemd/system lib/systemd/system/*.wants lib/systemd/system-generators var/lib/systemd/linger
mkdir -p etc/systemd/system etc/systemd/logind.conf.d etc/polkit-1/rules.d run/sshd
printf '[Login]\nKillUserProcesses=yes\nUserStopDelaySec=0\n' > etc/systemd/logind.conf.d/box.conf
printf '[Service]\nExecStart=%s -D -e -f /run/sshd_config\nKillMode=process\n' "$SSHD" > etc/systemd/system/box.service
printf '[Unit]\nWants=dbus.service systemd-logind.service box.service\n' > etc/systemd/system/box.target
mkdir etc/systemd/system/systemd-logind.service.d  # its sandbox needs mounts that namespaces may not make
cat > etc/systemd/system/systemd-logind.service.d/box.conf << END
[Service]
ProtectSystem=no
ProtectHome=no
PrivateTmp=no
ProtectControlGroups=no
ProtectKernelModules=no
ProtectKernelLogs=no
DeviceAllow=
IPAddressDeny=
END

chroot . useradd -m -s /bin/bash -p '*' "$USER_OF_BOX"
ssh-keygen -q -t ed25519 -N '' -f run/key
ssh-keygen -q -t ed25519 -N '' -f run/host_key
mkdir -p -m 700 "home/$USER_OF_BOX/.ssh"
cp run/key.pub "home/$USER_OF_BOX/.ssh/authorized_keys"
chroot . chown -R "$USER_OF_BOX" "home/$USER_OF_BOX/.ssh"
cat > run/sshd_config << END
ListenAddress 127.0.0.1
HostKey /run/host_key
PidFile none
UsePAM yes
PasswordAuthentication no
END
rm -rf root/.ssh  # of this machine: ssh asks the account, not $HOME, for it
mkdir -p -m 700 root/.ssh
echo "127.0.0.1 $(cut -d' ' -f1,2 run/host_key.pub)" > root/.ssh/known_hosts
cat > root/.ssh/config << END
Host box
  HostName 127.0.0.1
  User $USER_OF_BOX
  IdentityFile /run/key
  IdentitiesOnly yes
  UserKnownHostsFile /root/.ssh/known_hosts
END
mkdir .outside
pivot_root . .outside
umount -l /.outside
container=namespaces exec /usr/lib/systemd/systemd --unit=box.target --log-target=console --log-level=info
"""


def missing() -> str:
    """Return why this machine cannot have such a box; "" if it can."""
    if os.getuid() != 0:
        return "needs root, for namespaces with a systemd"
    absent = [str(path) for path in NEEDED if not path.exists()]
    if absent or SSHD is None or not list(Path("/usr/lib").glob("**/security/pam_systemd.so")):
        return f"needs systemd, libpam-systemd, dbus, polkit and sshd: {', '.join(absent) or 'one of them'} is missing"
    if "\toverlay\n" not in Path("/proc/filesystems").read_text() or _cgroups() is None:
        return "needs overlayfs and a writable cgroup2"
    return ""


def _cgroups() -> Path | None:
    """Return where cgroup2 is mounted, alone or beside cgroup1."""
    places = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
    found = (path for path in places if (path / "cgroup.procs").exists() and (path / "cgroup.controllers").exists())
    return next((path for path in found if os.access(path, os.W_OK)), None)


class SystemdBox:
    """The box. Commands of `run` are root's, on the box itself, where `ssh box` logs in as USER."""

    def __init__(self, folder: Path) -> None:
        cgroups = _cgroups()
        assert cgroups is not None
        self.log = folder / "systemd.log"
        self._cgroup = cgroups / f"orch-test-{os.getpid()}"
        (folder / "base").mkdir()
        shown = sorted({str(ROOT), sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix)})
        self._cgroup.mkdir()
        enter = f'echo $$ > {self._cgroup}/cgroup.procs; exec unshare -pmCiun --fork --kill-child sh -c "$@"'
        with self.log.open("wb") as log:
            self._outer = subprocess.Popen(
                ["sh", "-c", enter, "sh", BOOT, "sh", str(folder / "base"), *shown],
                env={**os.environ, "SSHD": str(SSHD), "USER_OF_BOX": USER},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._init = wait_until(self._find_init, 30, f"systemd to start: see {self.log}")
            wait_until(lambda: self.succeeds("ssh", "box", "true"), 30, "a login")
        except BaseException:
            self.close()
            raise

    def _find_init(self) -> int | None:
        assert self._outer.poll() is None, self.log.read_text(errors="replace")
        return next((pid for pid in descendants(self._outer.pid) if name_of(pid) == "systemd"), None)

    def start(self, *command: str, cwd: str = "/") -> subprocess.CompletedProcess[str]:
        """Run a command as root on the box, without a login."""
        inside = ["nsenter", "-t", str(self._init), "-a", "env", "-i", f"PATH={os.environ['PATH']}", "HOME=/root"]
        inside += [f"PYTHONPATH={ROOT}", "PYTHONDONTWRITEBYTECODE=1", "sh", "-c", f'cd {cwd} && exec "$@"', "sh"]
        return subprocess.run(
            [*inside, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )

    def run(self, *command: str, cwd: str = "/") -> str:
        """Run a command that must succeed, and return what it prints."""
        done = self.start(*command, cwd=cwd)
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def succeeds(self, *command: str) -> bool:
        return self.start(*command).returncode == 0

    def file(self, path: str) -> Path:
        """Return the path by which this machine reaches a file of the box."""
        return Path(f"/proc/{self._init}/root{path}")

    def set_logind(self, *lines: str) -> None:
        """Replace the settings of systemd-logind."""
        text = "\n".join(["[Login]", "UserStopDelaySec=0", *lines, ""])
        self.file("/etc/systemd/logind.conf.d/box.conf").write_text(text)
        self.run("systemctl", "restart", "systemd-logind")

    def close(self) -> None:
        """Kill everything, and remove its cgroups."""
        for pid in descendants(self._outer.pid):  # the first of a pid namespace takes the others with it
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._outer.kill()
        self._outer.wait(30)
        _wait_for_removal(self._cgroup)


def _wait_for_removal(cgroup: Path) -> None:
    def is_removed() -> bool:
        for folder, _, _ in os.walk(cgroup, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                return False
        return True

    wait_until(is_removed, 30, f"{cgroup} to be empty")
