"""F3: broken tokenizer files end in one TokenizerError that names the field, never in a panic."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qh_runtime.errors import TokenizerError
from qh_runtime.tokenizers import tokenizer_file
from qh_runtime.tokenizers.chat_tokenizer import MAX_TEXT_BYTES, convert_panic
from qh_runtime.tokenizers.from_hf import load_tokenizer
from tests.support.figures import Record
from tests.support.token_files import byte_level_file, metaspace_file, write_tokenizer

Change = Callable[[dict[str, Any]], object]


def _added(**change: Any) -> dict[str, Any]:
    token = {
        "id": 900, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    }  # fmt: skip
    return {**token, **change}


def _template(*ids: str, **table: Any) -> dict[str, Any]:
    pieces = [{"SpecialToken": {"id": token, "type_id": 0}} for token in ids]
    both = [*pieces, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": both, "pair": both, "special_tokens": table}


def _unigram(**change: Any) -> dict[str, Any]:
    return {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], **change}


REPLACE_NOTHING = {"type": "Replace", "pattern": {"String": ""}, "content": "x"}
# name -> (change, field that the error names)
BROKEN: dict[str, tuple[Change, str]] = {
    "merge of unknown parts": (lambda d: d["model"]["merges"].append(["q", "zzz"]), "merges"),
    "merge without result": (lambda d: d["model"]["merges"].append(["z", "q"]), "merges"),
    "merge of three": (lambda d: d["model"]["merges"].append(["a", "b", "c"]), "merges"),
    "merge as one word": (lambda d: d["model"]["merges"].append("ab"), "merges"),
    "merge of numbers": (lambda d: d["model"]["merges"].append([1, 2]), "merges"),
    "merges as object": (lambda d: d["model"].update(merges={}), "merges"),
    "subword prefix": (
        lambda d: d["model"].update(continuing_subword_prefix="\u00e9" * 9),
        "merges",
    ),
    "prefix of wrong type": (
        lambda d: d["model"].update(continuing_subword_prefix=[1]),
        "continuing_subword_prefix",
    ),
    "unk as object": (lambda d: d["model"].update(unk_token={}), "unk_token"),
    "unknown unk": (lambda d: d["model"].update(unk_token="<nope>"), "unk_token"),
    "id too large": (lambda d: d["model"]["vocab"].update(zz=1 << 21), "vocab"),
    "id of 2^32": (lambda d: d["model"]["vocab"].update(zz=1 << 32), "vocab"),
    "negative id": (lambda d: d["model"]["vocab"].update(zz=-1), "vocab"),
    "id as text": (lambda d: d["model"]["vocab"].update(zz="1"), "vocab"),
    "id as bool": (lambda d: d["model"]["vocab"].update(zz=True), "vocab"),
    "id as float": (lambda d: d["model"]["vocab"].update(zz=1.5), "vocab"),
    "repeated id": (lambda d: d["model"]["vocab"].update(zz=0), "vocab"),
    "empty vocab": (lambda d: d["model"].update(vocab={}), "vocab"),
    "vocab as list": (lambda d: d["model"].update(vocab=[]), "vocab"),
    "long token": (lambda d: d["model"]["vocab"].update({"z" * 70_000: 999}), "vocab"),
    "no model": (lambda d: d.pop("model"), "model"),
    "model of unknown type": (lambda d: d["model"].update(type="Nope"), "model.type"),
    "model as text": (lambda d: d.update(model="BPE"), "model"),
    "template of unknown token": (
        lambda d: d.update(post_processor=_template("[NOPE]")),
        "post_processor",
    ),
    "template token outside the vocabulary": (
        lambda d: d.update(
            post_processor=_template("[N]", **{"[N]": {"id": "[N]", "ids": [7], "tokens": ["[N]"]}})
        ),
        "special_tokens",
    ),
    "template ids and tokens differ": (
        lambda d: d.update(
            post_processor=_template("a", a={"id": "a", "ids": [1, 2], "tokens": ["a"]})
        ),
        "special_tokens",
    ),
    "template id too large": (
        lambda d: d.update(
            post_processor=_template("a", a={"id": "a", "ids": [1 << 30], "tokens": ["a"]})
        ),
        "special_tokens",
    ),
    "template in a sequence": (
        lambda d: d.update(
            post_processor={"type": "Sequence", "processors": [_template("[NOPE]")]}
        ),
        "post_processor",
    ),
    "replace of nothing": (lambda d: d.update(normalizer=REPLACE_NOTHING), "pattern"),
    "replace of nothing inside": (
        lambda d: d.update(normalizer={"type": "Sequence", "normalizers": [REPLACE_NOTHING]}),
        "pattern",
    ),
    "replace of nothing in the decoder": (lambda d: d.update(decoder=REPLACE_NOTHING), "pattern"),
    "normalizer as text": (lambda d: d.update(normalizer="NFC"), "normalizer"),
    "deep decoder": (
        lambda d: d.update(decoder=json.loads('{"a":' * 200 + "1" + "}" * 200)),
        "decoder",
    ),
    "added tokens as object": (lambda d: d.update(added_tokens={}), "added_tokens"),
    "added token as text": (lambda d: d["added_tokens"].append("x"), "added_tokens"),
    "added id too large": (lambda d: d["added_tokens"].append(_added(id=1 << 22)), "id"),
    "added id negative": (lambda d: d["added_tokens"].append(_added(id=-1)), "id"),
    "added token empty": (lambda d: d["added_tokens"].append(_added(content="")), "content"),
    "added token long": (lambda d: d["added_tokens"].append(_added(content="x" * 600)), "content"),
    "added token twice": (lambda d: d["added_tokens"].extend([_added(), _added()]), "added_tokens"),
    "unigram empty": (lambda d: d.update(model=_unigram(vocab=[])), "vocab"),
    "unigram without unk": (lambda d: d.update(model=_unigram(unk_id=None)), "unk_id"),
    "unigram unk outside": (lambda d: d.update(model=_unigram(unk_id=9)), "unk_id"),
    "unigram bad entry": (lambda d: d.update(model=_unigram(vocab=[["a"]])), "vocab"),
    "unigram bad score": (lambda d: d.update(model=_unigram(vocab=[["a", "b"]])), "vocab"),
    "unigram twice": (lambda d: d.update(model=_unigram(vocab=[["a", 0], ["a", 0]])), "vocab"),
    "wordpiece without unk": (
        lambda d: d.update(model={"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[U]"}),
        "unk_token",
    ),
    "wordlevel without unk": (
        lambda d: d.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[U]"}),
        "unk_token",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_named(name: str, tmp_path: Path) -> None:
    change, field = BROKEN[name]
    data = byte_level_file(special=["<s>"])
    change(data)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(write_tokenizer(tmp_path, data))
    assert field in caught.value.facts["field"], caught.value
    assert "\n" not in str(caught.value)


# What only the library can tell: its refusals and its panics come out as the same error.
LIBRARY: dict[str, Change] = {
    "bad regex": lambda d: d.update(
        pre_tokenizer={
            "type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": False,
        }
    ),
    "bad charsmap": lambda d: d.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "unknown decoder": lambda d: d.update(decoder={"type": "Nope"}),
    "dropout of five": lambda d: d["model"].update(dropout=5.0),
    "wrong version": lambda d: d.update(version="9.9"),
    "normalizer without type": lambda d: d.update(normalizer={}),
    "strip without content": lambda d: d.update(decoder={"type": "Strip"}),
}  # fmt: skip


@pytest.mark.parametrize("name", LIBRARY)
def test_library_failure_is_converted(name: str, tmp_path: Path) -> None:
    data = byte_level_file(special=["<s>"])
    LIBRARY[name](data)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(write_tokenizer(tmp_path, data))
    assert caught.value.facts["what"] in {"load", "probe encode", "probe decode"}


def test_truncation_and_padding_in_the_file_do_not_apply(tmp_path: Path) -> None:
    """stride >= max_length panics when it is used; a chat never wants either."""
    data = byte_level_file()
    data["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5,
    }  # fmt: skip
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, data))
    assert tokenizer.decode(tokenizer.encode_text("hello world")) == "hello world"


def test_panic_is_not_an_exception_but_is_converted() -> None:
    class PanicException(BaseException):
        pass

    def panic() -> int:
        raise PanicException("index out of bounds")

    with pytest.raises(TokenizerError) as caught:
        convert_panic(panic, "encode")
    assert caught.value.facts["what"] == "encode"

    def interrupt() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_panic(interrupt, "encode")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"a": NaN}', b'{"a": Infinity}',
        b'{"a": 1, "a": 2}', b'{"model": {"vocab": {"a": 1, "a": 2}}}', b"[" * 100_000,
        b'{"a":' * 100_000, b'{"a": 1e999999}' b"x", b"\x00",
    ],
)  # fmt: skip
def test_file_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.facts["path"].endswith("tokenizer.json")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"a": NaN}', "{" * 100_000])
def test_broken_companion_file(tmp_path: Path, name: str, content: str) -> None:
    write_tokenizer(tmp_path, byte_level_file())
    (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.facts["path"].endswith(name)


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.facts["expected"] == "tokenizer.json"
    assert caught.value.hint


def test_directory_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)


def test_file_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path, byte_level_file())
    monkeypatch.setattr(tokenizer_file, "MAX_FILE_BYTES", 100)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.facts["field"] == "file size"


@pytest.mark.parametrize(
    "value", [-1, 1 << 21, "2", 1.5, True, [1, "x"], {"a": 1}, "\x1b[2J" * 999, ["x" * 9999]]
)
def test_bad_end_token(tmp_path: Path, value: object) -> None:
    """Shown short, whatever it is."""
    write_tokenizer(tmp_path, byte_level_file())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.facts["field"] == "eos_token_id"
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


SIDE_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
)


@pytest.mark.parametrize("name", SIDE_FILES)
@pytest.mark.parametrize(
    "text", ['{"bos_token": "\\ud800"}', '{"x": [{"\\udfff": 1}]}', '{"a":' * 40 + "1" + "}" * 40]
)
def test_half_characters_and_depth_in_side_files(tmp_path: Path, name: str, text: str) -> None:
    write_tokenizer(tmp_path, byte_level_file(special=["<s>"]))
    (tmp_path / name).write_text(text)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.facts["path"].endswith(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["\x00\x1b[2J", "\ud800", "x" * 50_000, ["y"] * 9999])
def test_what_was_found_is_shown_short_and_printable(tmp_path: Path, value: object) -> None:
    for change in (
        lambda d: d["model"]["vocab"].update(zz=value),
        lambda d: d["model"]["merges"].append([value, "a"]),
        lambda d: d["model"].update(unk_token=value),
        lambda d: d["model"].update(type=value),
        lambda d: d["added_tokens"].append(_added(id=value)),
        lambda d: d["added_tokens"].append(_added(content=[value])),
        lambda d: d["added_tokens"].append(value),
    ):
        data = byte_level_file(special=["<s>"])
        change(data)
        with pytest.raises(TokenizerError) as caught:
            load_tokenizer(write_tokenizer(tmp_path, data))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


def test_end_tokens_of_all_files(tmp_path: Path) -> None:
    data = byte_level_file(special=["<s>", "</s>", "<|im_end|>", "<|other|>"])
    first = data["added_tokens"][0]["id"]
    write_tokenizer(tmp_path, data, eos_token={"content": "</s>"}, bos_token="<s>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [first + 3]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": first + 1}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_ids == {first + 1, first + 2, first + 3}
    assert tokenizer.bos_id == first


@pytest.mark.parametrize(
    ("config", "wanted"),
    [({}, True), ({"add_bos_token": False}, False), ({"add_bos_token": True}, True)],
)
def test_bos_of_raw_text(tmp_path: Path, config: dict[str, Any], wanted: bool) -> None:
    write_tokenizer(tmp_path, metaspace_file(), bos_token="<s>", **config)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.add_bos is wanted
    assert (tokenizer.encode_raw("hello")[0] == tokenizer.bos_id) is wanted
    assert tokenizer.encode_raw("") == [tokenizer.bos_id]


def test_no_bos_at_all(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level_file()))
    assert tokenizer.bos_id is None
    assert tokenizer.encode_raw("") == []


def test_unknown_characters_are_not_control_tokens(tmp_path: Path) -> None:
    data = metaspace_file()
    data["model"]["byte_fallback"] = False
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, data, unk_token="<unk>"))
    unknown = tokenizer.token_id("<unk>")
    assert unknown in tokenizer.encode_text("\u4f60")
    assert unknown not in tokenizer.encode_text("<unk>")


def test_text_too_long(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level_file()))
    with pytest.raises(TokenizerError):
        tokenizer.encode_text("\u4f60" * (MAX_TEXT_BYTES // 3 + 1))


def test_lone_surrogates_are_read_as_replacement(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level_file()))
    assert tokenizer.decode(tokenizer.encode_text("a\ud800b\udfff")) == "a\ufffdb\ufffd"


def mutate_and_load(data: st.DataObject, folder: Path) -> None:
    """Any value anywhere replaced by any other: a tokenizer that works, or a TokenizerError."""
    source = copy.deepcopy(data.draw(st.sampled_from([byte_level_file(), metaspace_file()])))
    node: Any = source
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys[:40]))
        child = node[key]
        if not isinstance(child, dict | list) or not child or data.draw(st.booleans()):
            break
        node = child
    node[key] = data.draw(
        st.none() | st.booleans() | st.integers(-2, 1 << 33) | st.text(max_size=4)
        | st.lists(st.integers(0, 3), max_size=2) | st.just({}) | st.floats(allow_nan=False)
    )  # fmt: skip
    try:
        tokenizer = load_tokenizer(write_tokenizer(folder, source))
    except TokenizerError:
        return
    tokenizer.decode(tokenizer.encode_text("hello world <s>"))


_MUTATIONS = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_MUTATIONS
@given(data=st.data())
def test_mutated_file_loads_or_is_refused(
    tmp_path: Path, record_property: Record, data: st.DataObject
) -> None:
    record_property("cases", 1)
    mutate_and_load(data, tmp_path)


@pytest.mark.slow
@settings(parent=_MUTATIONS, max_examples=10_000)
@given(data=st.data())
def test_many_mutated_files_load_or_are_refused(
    tmp_path: Path, record_property: Record, data: st.DataObject
) -> None:
    record_property("cases", 1)
    mutate_and_load(data, tmp_path)


def test_a_long_text_leaves_other_threads_running(tmp_path: Path) -> None:
    """Ctrl+c and the screen are Python: the library must not hold the GIL for seconds."""
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level_file()))
    text = "a" * 400_000
    started = time.perf_counter()
    ended = threading.Event()
    longest_s = 0.0

    def watch() -> None:
        nonlocal longest_s
        last = time.perf_counter()
        while not ended.wait(0.005):
            now = time.perf_counter()
            longest_s, last = max(longest_s, now - last), now

    thread = threading.Thread(target=watch)
    thread.start()
    ids = tokenizer.encode_text(text)
    elapsed_s = time.perf_counter() - started
    ended.set()
    thread.join()
    assert tokenizer.decode(ids) == text
    assert elapsed_s > 0.1, "not long enough to tell"
    assert longest_s < elapsed_s / 2
