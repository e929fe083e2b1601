"""What is left out is counted by reason, and refused where it is too much."""

import pytest

from lightning_overlock.data.left_out import LeftOut, refuse_if_too_many
from lightning_overlock.errors import InputError


def test_the_summary_counts_by_reason_and_names_the_first_of_each():
    left_out = LeftOut("images")
    assert left_out.summary(1200) == "used 1,200 of 1,200 images"
    left_out.add("with the suffix .txt", "a.txt")
    for name in ("b.xyz", "c.xyz"):
        left_out.add("with the suffix .xyz", name)
    assert left_out.total == 3
    assert left_out.summary(1200) == (
        "used 1,197 of 1,200 images, 3 left out: "
        "2 with the suffix .xyz (b.xyz), 1 with the suffix .txt (a.txt)"
    )


def test_rare_reasons_are_summed_up():
    left_out = LeftOut("boxes")
    for number in range(1, 6):
        left_out.add(f"of kind {number}", "it", count=number)
    assert left_out.reasons(most=2) == "5 of kind 5 (it), 4 of kind 4 (it), 6 for other reasons"


def test_more_than_the_share_asked_for_is_refused():
    left_out = LeftOut("boxes")
    left_out.add("without an area", "box 5", count=10)
    refuse_if_too_many("a.json", left_out, 100)
    left_out.add("without an area", "box 7")
    with pytest.raises(InputError, match=r"a\.json: 11 of 100 boxes would be .*: 11 without an"):
        refuse_if_too_many("a.json", left_out, 100)
    refuse_if_too_many("a.json", left_out, 100, largest_share=0.11)
