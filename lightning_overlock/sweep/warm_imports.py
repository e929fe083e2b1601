"""What the warm process of a sweep imports; nothing else happens in it."""

import importlib
import signal

# A cluster tells all processes of a job to stop; the trials save, and the runner ends this one.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)

# `fit`, and what a run imports only once it uses it. No room below imports the command line, so it
# is named as a trial's command names it.
for _name in (
    "lightning_overlock.cli.training",
    "torch.utils.tensorboard",
    "sklearn.datasets",
):
    importlib.import_module(_name)
