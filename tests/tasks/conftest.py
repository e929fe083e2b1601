"""What the tests of several tasks share."""

import pytest
from tasks.coco_layout import write_layout


@pytest.fixture
def coco(workplace):
    """A small COCO in the folder `coco` of an empty workplace."""
    write_layout("coco")
