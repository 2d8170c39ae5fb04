"""aqlm_1x8_g8: contract."""

from __future__ import annotations

from tests.support.codebook_contract import CodebookContract


class TestAqlm1By8g8(CodebookContract):
    name = "aqlm_1x8_g8"
