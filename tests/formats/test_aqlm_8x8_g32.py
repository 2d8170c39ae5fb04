"""aqlm_8x8_g32: contract."""

from __future__ import annotations

from tests.support.codebook_contract import CodebookContract


class TestAqlm8By8g32(CodebookContract):
    name = "aqlm_8x8_g32"
