"""`python -m lightning_overlock` is the `lightning` command."""

import sys

from lightning_overlock.cli.main import main

sys.exit(main())
