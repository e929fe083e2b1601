"""A real PostgreSQL server, which is started as an ordinary user."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(scope="module")
def server():
    """A PostgreSQL server's URL, on a free port of this machine."""
    if not BINARIES and shutil.which("initdb") is None:
        pytest.skip("PostgreSQL is not installed (Debian's package: postgresql)")
    binaries = BINARIES[-1] if BINARIES else Path(shutil.which("initdb")).parent
    as_user = {}
    if os.geteuid() == 0:  # initdb refuses to run as root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user `postgres`")
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # Not below pytest's folder, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if as_user:
        os.chown(folder, as_user["user"], as_user["group"])

    def call(name, *arguments):
        subprocess.run(
            [binaries / name, "-D", folder / "data", *arguments],
            check=True,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdout=subprocess.DEVNULL,
            **as_user,
        )

    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    call("initdb", "-A", "trust", "-U", "me", "--no-sync")
    call("pg_ctl", "-w", "-o", options, "-l", folder / "log", "start")
    yield f"postgresql://me@127.0.0.1:{port}/postgres"
    call("pg_ctl", "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder)
