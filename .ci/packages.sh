#!/usr/bin/env bash
# Installs what the tests need from the system, and only what is missing; where it may not, it names what is missing.
set -euo pipefail

PATH="$PATH:/usr/sbin:/sbin"

missing=()
need() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null || missing+=("$2")
}
need sshd openssh-server
need ssh openssh-client
need rsync rsync
need tmux tmux
need git git
need ip iproute2
need ps procps
need nft nftables
need crontab cron
need faketime faketime
need cc gcc
need chattr e2fsprogs
need tcsh tcsh
need csh csh
need zsh zsh
need fish fish
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)

if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "==> missing: ${missing[*]}. The tests that need them are skipped." >&2
    echo "    On Debian or Ubuntu: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 0
fi

# The tests start an sshd of their own; installing the package must not open the machine's port 22.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

echo "==> installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null
apt-get install -qq --yes --no-install-recommends "${missing[@]}" </dev/null >/dev/null
