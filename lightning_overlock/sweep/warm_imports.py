"""What the warm process of a sweep does before it forks: it imports, and builds `fit`'s parser."""

import atexit
import gc
import importlib
import signal

# A cluster tells all processes of a job to stop; the trials save, and the runner ends this one.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)

# `fit`, which no room below imports: it is named as a trial's command names it. It comes first, as
# in a trial.
_build = importlib.import_module("lightning_overlock.cli.build")

# What a run imports only once it uses it.
for _name in (
    "PIL.JpegImagePlugin",
    "attrs",
    "fsspec.implementations.chained",
    "sklearn.datasets",
    "sklearn.model_selection",
    "torch.utils.serialization.config",
    "torch.utils.tensorboard",
):
    importlib.import_module(_name)

_build.warm_up(["fit", "--config=quickstart"])

# A trial's garbage collector would look at all of this, and so copy the memory it lies in.
gc.collect()
gc.freeze()
# It is taken down as usual: libraries that count what is left at the end would speak of leaks.
atexit.register(gc.unfreeze)
