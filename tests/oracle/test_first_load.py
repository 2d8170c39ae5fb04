"""The check of the first load on every tiny architecture, format and instruction set: no alarm."""

from __future__ import annotations

import pytest

from qh_kernels import isa
from qh_runtime.first_load.layer import Arithmetic, check_layer
from tests.support.native_model import NativeModel
from tests.support.tiny_checkpoint import BITNET_ENCODINGS, CASES, TinyCheckpoints

TERNARY = [name for name in CASES if "bitnet" in name or "ternary" in name]
KINDS = [
    (name, encoding)
    for name in CASES
    for encoding in (BITNET_ENCODINGS if name in TERNARY else ("",))
]
PACKS = (None, "f16", "bf16", "int8", "int4_g32", "int4_g128", "nf4", "mxfp4", "nvfp4")
TOKENS = [0, 5, 77, 130]


@pytest.mark.parametrize(("name", "encoding"), KINDS)
def test_a_sound_model_passes(tiny: TinyCheckpoints, name: str, encoding: str) -> None:
    for pack in PACKS if not encoding else (None,):
        model = NativeModel.from_folder(tiny.folder(name, encoding), pack)
        for isa_name in isa.available():
            for exact in (False, True):
                how = Arithmetic(isa_name, exact, "f16", 1)
                # The last layer of the cases with windows is of the other kind.
                for index in (0, len(model.spec.layers) - 1):
                    check_layer(model.spec, model.packed.weights, index, TOKENS, how)
