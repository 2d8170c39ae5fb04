"""aqlm_2x16_g8: contract."""

from __future__ import annotations

from tests.support.codebook_contract import CodebookContract


class TestAqlm2By16g8(CodebookContract):
    name = "aqlm_2x16_g8"
