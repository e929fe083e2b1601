"""A real PostgreSQL server for the tests of sweeps that several machines work on."""

from contextlib import ExitStack

import pytest
from sweep.postgres_server import postgres


@pytest.fixture(scope="module")
def server():
    """A PostgreSQL server's URL, on a free port of this machine."""
    with ExitStack() as stack:
        try:
            url = stack.enter_context(postgres())
        except LookupError as missing:
            pytest.skip(str(missing))
        yield url
