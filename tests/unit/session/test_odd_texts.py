"""Texts that nobody types on purpose, as messages, system prompts, earlier answers and raw prompts.

Long lines, piles of combining marks, characters of every plane and width, controls, direction marks
and halves of characters: an answer, or where the context is too short a refusal, and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from qh_chat.inert import inert, is_inert
from qh_runtime.errors import ContextLengthError
from qh_runtime.hardware.profile import probe
from qh_runtime.loader import load_model
from qh_runtime.options import LoadOptions, SamplingParams
from qh_runtime.session.events import Done, Engine, Message, Token
from qh_runtime.store.entry import describe_folder
from tests.support.model_tensors import config, random_tensors, spec_of, write_checkpoint
from tests.support.token_files import byte_level_file, metaspace_file, write_tokenizer

CONTEXT = 8192
SHORT = SamplingParams(max_tokens=3, seed=1)


def _soup(seed: int, length: int = 120) -> str:
    """Characters of every plane, halves of surrogate pairs among them."""
    dice = random.Random(seed)
    tops = (0x80, 0x800, 0x3000, 0xE000, 0x10000, 0x20000, 0x110000)
    return "".join(chr(dice.randrange(dice.choice(tops))) for _ in range(length))


ODD: dict[str, str] = {
    "one character": "a",
    "spaces": " \t \u00a0\u2003\u3000 x",
    "newlines": "\n\r\n\r\x0b\x0c\x85\u2028\u2029x",
    "controls": "".join(map(chr, range(32))) + "\x7f",
    "C1 controls": "".join(map(chr, range(0x80, 0xA0))),
    "escape sequences": "\x1b[2J\x1b]0;title\x07\x1bP1$r0m\x1b\\\x9b31m\x1b",
    "directions": "\u202e\u202d\u2066\u2067\u2068\u2069\u200e\u200f\u061c abc",
    "zero width": "\u200b\u200c\u200d\u2060\ufeff" * 20,
    "tags": "".join(chr(0xE0000 + x) for x in range(0x80)),
    "variation selectors": "\u2764\ufe0f\ufe0e" + "".join(chr(0xE0100 + x) for x in range(20)),
    "combining marks": "a" + "\u0301\u0328\u20dd" * 100,
    "combining marks alone": "\u0300" * 100,
    "joined family": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466" * 20,
    "skin tones and flags": "\U0001f44b\U0001f3ff\U0001f1e9\U0001f1ea" * 20,
    "wide": "\u6f22\u5b57\uff21\uff71\u3042\uac00" * 20,
    "hangul letters": "\u1112\u1161\u11ab" * 40,
    "arabic and hebrew": "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e9\u05dc\u05d5\u05dd" * 9,
    "indic": "\u0915\u094d\u0937\u093f \u0b95\u0bcd\u0bb7" * 20,
    "mathematical letters": "\U0001d552\U0001d7d8" * 40,
    "private use": "\ue000\uf8ff\U000f0000\U0010fffd" * 20,
    "no characters": "\ufffe\uffff\U0001fffe\U0010ffff\ufdd0",
    "halves": "a\ud800b\udfffc\ud83d",
    "halves the wrong way round": "\udc4b\ud83d" * 20,
    "replacement": "\ufffd" * 50,
    "byte order marks": "\ufeffabc\ufffe",
    "NUL": "a\x00b\x00",
    "control tokens": "<s></s><unk><|im_start|>system\n<|im_end|><0x0A><0xFF>",
    "metaspace": "\u2581 \u2581\u2581a\u0120b\u010a",
    "template code": "{{ 7*7 }}{% for x in y %}{# #}{%- raw -%}",
    "markup": "[b]x[/b][link=file:///etc/passwd]y[/link]</s>",
    "percent and braces": "%s %d {0} {x} $(id) `id` \\ ' \"",
    "one word": "w" * 900,
    "digits": "1234567890" * 90,
    "folded": "\u0130\u0131\u017f\u212a\u1e9e\ufb03",
    **{f"soup {seed}": _soup(seed) for seed in range(14)},
}
LONG: dict[str, str] = {
    "a line of a megabyte": "x" * (1 << 20),
    "a hundred thousand marks": "a" + "\u0301" * 100_000,
    "a hundred thousand newlines": ".\n" * 100_000,
}


@pytest.fixture(
    scope="module",
    params=[
        "bytes",
        pytest.param("metaspace", marks=pytest.mark.slow),
        pytest.param("plain transcript", marks=pytest.mark.slow),
    ],
)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    root: Path = tmp_path_factory.mktemp("odd")
    settings = config("llama", vocab_size=400, max_position_embeddings=CONTEXT)
    folder = write_checkpoint(root / "model", settings, random_tensors(spec_of(vocab_size=400)))
    special = ["<|im_start|>", "<|im_end|>"]
    data = metaspace_file() if request.param == "metaspace" else byte_level_file(special=special)
    write_tokenizer(folder, data)
    if request.param != "plain transcript":
        (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content|trim }}<|im_end|>\n"
            "{% endfor %}<|im_start|>assistant\n"
        )
    options = LoadOptions(context_length=CONTEXT, threads=1)
    entry = describe_folder("odd", folder, "folder")
    loaded = load_model(entry, options, probe(root), root / "cache")
    yield loaded
    loaded.close()


def test_there_are_enough() -> None:
    assert len(ODD) + len(LONG) >= 50


@pytest.mark.parametrize("kind", ODD)
def test_odd_texts_are_answered(kind: str, engine: Engine) -> None:
    """In every role at once, and raw."""
    text = ODD[kind]
    talk = [Message("system", text), Message("user", text)]
    talk += [Message("assistant", text), Message("user", f"{text}?")]
    assert engine.count_tokens(talk) > 0
    for events in (engine.generate(talk, SHORT), engine.complete(text, SHORT)):
        *before, done = list(events)
        assert isinstance(done, Done)
        shown = "".join(inert(x.text) for x in before if isinstance(x, Token))
        assert is_inert(shown)
        shown.encode("utf-8")


@pytest.mark.parametrize("kind", LONG)
def test_long_ones_are_refused(kind: str, engine: Engine) -> None:
    with pytest.raises(ContextLengthError) as error:
        list(engine.generate([Message("user", LONG[kind])], SHORT))
    assert error.value.facts["prompt_tokens"] > CONTEXT
    assert error.value.hint
