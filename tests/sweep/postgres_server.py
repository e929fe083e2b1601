"""A real PostgreSQL server on this machine, which is started as an ordinary user."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def postgres(fsync: bool = False, connections: int = 100) -> Iterator[str]:
    """Start a server on a free port, and stop it at the end.

    Args:
        fsync: Whether what is written is on the disk before it counts as written.
        connections: The most that it takes at a time.

    Yields:
        The URL of its database.

    Raises:
        LookupError: There is no PostgreSQL, or nobody who may run it.
    """
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not installed and shutil.which("initdb") is None:
        raise LookupError("PostgreSQL is not installed (Debian's package: postgresql)")
    binaries = installed[-1] if installed else Path(shutil.which("initdb")).parent
    as_user = {}
    if os.geteuid() == 0:  # initdb refuses to run as root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            raise LookupError(
                "PostgreSQL does not run as root, and there is no user `postgres`"
            ) from None
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

    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
    options += f" -c max_connections={connections}"
    options += "" if fsync else " -c fsync=off"
    call("initdb", "-A", "trust", "-U", "me", "--no-sync")
    call("pg_ctl", "-w", "-o", options, "-l", folder / "log", "start")
    try:
        yield f"postgresql://me@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)
