"""`lightning sweep dashboard`: a study in optuna-dashboard, on this machine alone."""

from pathlib import Path

from lightning_overlock.errors import InputError
from lightning_overlock.sweep.storage import find_study

HOST = "127.0.0.1"


def serve(name: str, runs: Path, url: str | None, port: int) -> None:
    """Serve a study until Ctrl-C.

    Args:
        name: The study's name.
        runs: The folder of the sweeps' folders.
        url: The database's; None for the folder's own.
        port: On 127.0.0.1.

    Raises:
        InputError: If there is no such study, optuna-dashboard is not installed, or the port is
            taken.
    """
    storage, study, _ = find_study(name, runs, url)
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise InputError(
            "sweep dashboard: optuna-dashboard is not installed.\n"
            "Install it: pip install 'lightning-overlock[dashboard]'."
        ) from None
    where = f"http://{HOST}:{port}/dashboard"
    print(f"{where} lists {study.study_name}; Ctrl-C ends it.", flush=True)
    try:
        run_server(storage, HOST, port)
    except OSError as error:
        raise InputError(
            f"--port {port}: cannot be listened on: {error.strerror}.\nTry another one."
        ) from None
    except OverflowError:
        raise InputError(f"--port {port}: expected a number from 1 to 65535.") from None
