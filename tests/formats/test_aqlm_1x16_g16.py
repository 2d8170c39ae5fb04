"""aqlm_1x16_g16: contract."""

from __future__ import annotations

from tests.support.codebook_contract import CodebookContract


class TestAqlm1By16g16(CodebookContract):
    name = "aqlm_1x16_g16"
