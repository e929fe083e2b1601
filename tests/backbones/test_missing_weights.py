"""Weights that are not there are told as what they are."""

import urllib.error

import pytest

from lightning_overlock.backbones import weights
from lightning_overlock.backbones.create import create_backbone
from lightning_overlock.errors import InputError


def test_an_unknown_tag_of_weights_is_named_with_those_there_are():
    with pytest.raises(InputError, match=r"no weights 'resnet18\.a1_in1'.*'resnet18\.a1_in1k'\?"):
        create_backbone("resnet18.a1_in1", {})


def test_a_missing_connection_is_not_taken_for_wrong_weights():
    def offline():
        try:
            raise urllib.error.URLError("Name or service not known")
        except OSError as error:
            raise RuntimeError("download failed") from error

    with pytest.raises(RuntimeError) as caught:
        offline()
    assert weights._is_unreachable(caught.value)
    assert weights._is_unreachable(ConnectionResetError())
    assert not weights._is_unreachable(RuntimeError("size mismatch for head.weight"))
