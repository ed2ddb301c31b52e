"""Python does not search for cycles while much data is read."""

import gc

import pytest

from seva_jax.data import collect
from seva_jax.runtime.garbage import no_search_for_cycles
from seva_jax.types import Prompt


def test_the_search_is_as_before_afterwards():
    @no_search_for_cycles()
    def failing():
        with no_search_for_cycles():
            pass
        assert not gc.isenabled()
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        failing()
    assert gc.isenabled()


def test_none_while_records_are_collected(tmp_path):
    """Their number would make it slow."""

    def records():
        assert not gc.isenabled()
        yield "line 1", iter([Prompt("a", "what is it", ())])

    images = collect.FolderImages(str(tmp_path))
    assert len(collect.prompt_set("a file", images, records()).prompts) == 1
    assert gc.isenabled()
