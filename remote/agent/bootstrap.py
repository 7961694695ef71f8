"""Install an agent on the box: `python3 -c SOURCE NAME SHA256 [FOLDER]`, with the agent on stdin.

This source is sent in single quotes, so it contains no single quote, backslash or exclamation mark. Any Python 3 can
parse it, so that an old one can report which version is needed. Exit code 3: the data on stdin has another SHA-256.
Exit code 4: ~/.cache/orch cannot be written, and the agent was installed in FOLDER.
"""

import hashlib
import os
import sys
import tempfile


def main() -> None:
    """Install the agent on stdin, if it is what the command line announces."""
    if sys.version_info < (3, 8):
        sys.exit("this is Python " + sys.version.split()[0] + "; 3.8 or newer is needed")
    name, expected = sys.argv[1:3]
    data = sys.stdin.buffer.read()
    if hashlib.sha256(data).hexdigest() == expected:
        choose_folder(name, data, "".join(sys.argv[3:]))
    else:
        sys.exit(3)


def choose_folder(name: str, data: bytes, other: str) -> None:
    """Install the agent below the home directory, or in the other folder if that cannot be written."""
    try:
        install("~/.cache/orch", name, data)
    except OSError as error:
        if not other:
            sys.exit(str(error))
        try:
            install(other, name, data)
        except OSError as second:
            sys.exit(str(error) + "; " + str(second))
        sys.exit(4)


def secure(folder: str) -> None:
    """Exit with an error if another user owns or could replace the folder. The agent checks more when it runs."""
    parent = os.path.dirname(folder)
    way = (folder, parent, os.path.dirname(parent))
    for path in way:
        owner = os.stat(path).st_uid
        if owner not in (0, os.geteuid()):
            sys.exit(path + " is owned by another user (uid " + str(owner) + "), who could replace the agent")
    os.chmod(folder, 0o700)
    for path in way:
        if os.stat(path).st_mode & 0o1002 == 0o0002:
            sys.exit(path + " can be written by every user: chmod go-w " + path)


def install(where: str, name: str, data: bytes) -> None:
    """Write the agent into a folder in one step."""
    os.umask(0o077)
    folder = os.path.expanduser(where)
    os.makedirs(folder, exist_ok=True)
    secure(folder)
    descriptor, temp = tempfile.mkstemp(prefix=".tmp-", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, os.path.join(folder, name))
    except BaseException:
        os.unlink(temp)
        raise


if __name__ == "__main__":
    main()
