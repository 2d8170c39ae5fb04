"""Streamed text is the whole text, no half character ever shows, broken bytes end as U+FFFD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qh_runtime.tokenizers.chat_tokenizer import ChatTokenizer
from qh_runtime.tokenizers.detokenizer import ByteDetokenizer, WindowDetokenizer, byte_rules
from qh_runtime.tokenizers.from_hf import load_tokenizer
from tests.support.token_files import byte_level_file, metaspace_file, write_tokenizer

REAL = ["models/prose-7m", "tokenizers/minimind", "tokenizers/gpt2"]
TEXTS = st.text(max_size=60) | st.text(
    alphabet="ab \u2581\u4f60\U0001f44b\u200d\ufe0f\ufffd", max_size=30
)
relaxed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _stream(tokenizer: ChatTokenizer, ids: list[int], *, continuation: bool = False) -> list[str]:
    stream = tokenizer.detokenizer(continuation=continuation)
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest, shared_data: Path) -> ChatTokenizer:
    return load_tokenizer(shared_data / request.param)


@pytest.fixture(
    scope="module", params=["byte", "always", "first", "never", "legacy", "metaspace-decoder"]
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    kind = request.param
    if kind == "byte":
        data = byte_level_file(special=["<s>"], plain=["<think>"])
    elif kind == "legacy":
        data = metaspace_file(legacy=True)
    elif kind == "metaspace-decoder":
        data = metaspace_file(scheme="first")
        data["decoder"] = data["pre_tokenizer"]
        data["model"]["byte_fallback"] = False
    else:
        data = metaspace_file(scheme=kind)
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp(kind), data))


@relaxed
@given(text=TEXTS)
def test_round_trip_on_real_tokenizers(text: str, real: ChatTokenizer) -> None:
    ids = real.encode_text(text)
    parts = _stream(real, ids)
    assert "".join(parts) == real.decode(ids) == text
    assert all(part.isprintable() or "\ufffd" not in part or "\ufffd" in text for part in parts)


@relaxed
@given(data=st.data())
def test_any_ids_stream_to_the_library_text(data: st.DataObject, real: ChatTokenizer) -> None:
    """Also ids that no text encodes to, and special ones; byte-level agrees on broken bytes too."""
    ids = data.draw(st.lists(st.integers(0, real.vocab_size + 3), max_size=30))
    shown = [i for i in ids if real.token(i) is not None and i not in real._hidden]
    whole = real._tokenizer.decode(shown, skip_special_tokens=False)
    assert "".join(_stream(real, ids)) == whole


@relaxed
@given(text=st.text(alphabet="hello world the and im end\u4f60\U0001f44b\n.,", max_size=40))
def test_round_trip_on_every_kind_of_decoder(text: str, made: ChatTokenizer) -> None:
    ids = made.encode_text(text)
    whole = made._tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(_stream(made, ids)) == whole


def test_no_half_character_is_shown(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, metaspace_file()))
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "\U0001f44b".encode()]
    assert None not in ids
    assert _stream(tokenizer, [i for i in ids if i is not None]) == ["", "", "", "\U0001f44b", ""]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"\xff", "\ufffd"),
        (b"\xf0\x9f\x91", "\ufffd"),
        (b"a\xe4\xbd", "a\ufffd"),
        (b"\xe4\xbdb", "\ufffdb"),
        (b"\xc0\x80", "\ufffd\ufffd"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\xf4\x90\x80\x80", "\ufffd\ufffd\ufffd\ufffd"),
        (b"\xe4\xbd\xa0\xe4", "\u4f60\ufffd"),
    ],
)
def test_broken_bytes_end_as_replacement(tmp_path: Path, data: bytes, wanted: str) -> None:
    for index, made in enumerate((metaspace_file(), byte_level_file())):
        tokenizer = load_tokenizer(write_tokenizer(tmp_path / str(index), made))
        ids = [_byte_id(tokenizer, byte) for byte in data]
        assert "".join(_stream(tokenizer, ids)) == wanted
        assert tokenizer.decode(ids) == wanted


def _byte_id(tokenizer: ChatTokenizer, byte: int) -> int:
    for token_id in range(tokenizer.vocab_size):
        if tokenizer.token_bytes(token_id) == bytes([byte]):
            return token_id
    raise AssertionError(f"no token for byte {byte}")


def test_prefix_space_of_answers_and_continuations(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, metaspace_file()))
    ids = tokenizer.encode_text("hello")
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, continuation=True) == " hello"


def test_special_tokens_are_not_shown(tmp_path: Path) -> None:
    data = byte_level_file(special=["<s>", "<|im_end|>"], plain=["<think>"])
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, data))
    ids = tokenizer.encode_text("<s>a<think>b<|im_end|>", allow_special=True)
    assert len(ids) == 5
    assert tokenizer.decode(ids) == "a<think>b"


def test_token_bytes(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level_file(special=["<s>"])))
    assert tokenizer.token_bytes(_id(tokenizer, "hello")) == b"hello"
    assert tokenizer.token_bytes(_id(tokenizer, "\u0120the")) == b" the"
    assert tokenizer.token_bytes(_id(tokenizer, "<s>")) == b"<s>"
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
    assert tokenizer.token_bytes(-1) == b""


def _id(tokenizer: ChatTokenizer, token: str) -> int:
    token_id = tokenizer.token_id(token)
    assert token_id is not None
    return token_id


WORD_PIECE: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": None,
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {
            token: index
            for index, token in enumerate(
                ["[UNK]", "play", "##ing", "##s", "do", "n", "'", "t", ".", ",", "a", "##a", "!"]
            )
        },
    },
}


@relaxed
@given(
    words=st.lists(st.sampled_from(["playing", "plays", "do", "n't", ".", "!", "aaa"]), max_size=12)
)
def test_window_decoder_streams_the_whole_text(
    words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A vocabulary that bytes do not describe: WordPiece, whose spaces depend on neighbours."""
    tokenizer = load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("wp"), WORD_PIECE))
    assert isinstance(tokenizer.detokenizer(), WindowDetokenizer)
    ids = tokenizer.encode_text(" ".join(words))
    whole = tokenizer._tokenizer.decode(ids)
    assert "".join(_stream(tokenizer, ids)) == whole


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "CTC"},
        {
            "type": "Sequence",
            "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "CTC"}]},
        {"type": "Sequence", "decoders": "x"},
        {"type": "Sequence", "decoders": [1]},
        {"type": "Metaspace", "replacement": "__"},
        {
            "type": "Sequence",
            "decoders": [
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 0, "stop": 2},
            ],
        },
    ],
)
def test_other_decoders_have_no_byte_rules(decoder: object) -> None:
    assert byte_rules(decoder) is None


def test_decoder_in_a_sequence_of_one() -> None:
    rules = byte_rules({"type": "Sequence", "decoders": [{"type": "ByteLevel"}]})
    assert rules is not None
    assert rules.byte_level
    stream = ByteDetokenizer(rules, lambda token_id: None)
    assert stream.push(1) + stream.flush() == ""
