"""The folder of formats is the registry."""

from __future__ import annotations

import pytest

from qh_runtime import formats
from qh_runtime.errors import FormatError


def test_names_are_the_files_of_the_folder() -> None:
    assert formats.names() == (
        *("aqlm_1x16_g16", "aqlm_1x16_g8", "aqlm_1x8_g8"),
        *("aqlm_2x16_g8", "aqlm_2x8_g8", "aqlm_8x8_g32"),
        *("bf16", "f16", "f32", "int4_g128", "int4_g32"),
        *("int8", "mxfp4", "nf4", "nvfp4", "ternary", "ternary5"),
    )


@pytest.mark.parametrize("name", ["", "base", "families", "int3", "../int8", "int8 "])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(FormatError) as error:
        formats.get(name)
    assert error.value.facts == {"format": name, "known": formats.names()}
