"""Real SentencePiece vocabularies (Llama 2, Mistral, a tiny one) with the rules of that family."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qh_runtime.tokenizers.chat_tokenizer import ChatTokenizer, Prompt
from qh_runtime.tokenizers.from_hf import load_tokenizer
from tests.support.llama2c import sentencepiece_tokenizer

MODELS = {
    "llama2": "tokenizers/llama2/tokenizer.model",
    "mistral-v3": "tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3",
    "stories260K": "models/stories260K/tok512.model",
}
relaxed = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _load(shared_data: Path, folder: Path, name: str) -> ChatTokenizer:
    sentencepiece_tokenizer(shared_data / MODELS[name]).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}'
    )
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=sorted(MODELS))
def tokenizer(
    request: pytest.FixtureRequest,
    shared_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> ChatTokenizer:
    return _load(shared_data, tmp_path_factory.mktemp(request.param), request.param)


def test_recorded_vectors_of_llama2(shared_data: Path, tmp_path: Path) -> None:
    """Texts and ids that llama.cpp keeps for this vocabulary."""
    tokenizer = _load(shared_data, tmp_path, "llama2")
    base = shared_data / "tokenizers" / "gguf-vocab" / "ggml-vocab-llama-spm.gguf"
    texts = Path(f"{base}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    lines = Path(f"{base}.out").read_text("utf-8").split("\n")
    checked = 0
    for text, line in zip(texts, lines, strict=False):
        wanted = [int(token_id) for token_id in line.split()]
        assert tokenizer.encode_text(text) == wanted, text
        assert tokenizer.decode(wanted) == text
        checked += 1
    assert checked >= 40


@relaxed
@given(text=st.text(max_size=40))
def test_round_trip(text: str, tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode_text(text)
    stream = tokenizer.detokenizer()
    parts = [*(stream.push(token_id) for token_id in ids), stream.flush()]
    # The vocabulary's own space mark is read as a space.
    wanted = text.replace("\u2581", " ")
    assert "".join(parts) == tokenizer.decode(ids) == wanted
    assert tokenizer.decode(ids, continuation=True) == (f" {wanted}" if ids else "")


@relaxed
@given(
    parts=st.lists(
        st.sampled_from(["</s>", "<s>", "<unk>", " ", "a", "hello", "\n", "</", "s>", "<0x41>"]),
        max_size=10,
    )
)
def test_control_tokens_in_text(parts: list[str], tokenizer: ChatTokenizer) -> None:
    """They are text, and cutting them apart adds no space."""
    text = "".join(parts)
    ids = tokenizer.encode_text(text)
    assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text


def test_template_and_text_side_by_side(tokenizer: ChatTokenizer) -> None:
    text = "<s>say </s> now"
    at = text.index("</s>") + 1
    ids = tokenizer.encode_prompt(Prompt(text, (at,)))
    bos, eos = tokenizer.token_id("<s>"), tokenizer.token_id("</s>")
    assert (ids[0], ids.count(bos or -1), ids.count(eos or -1)) == (bos, 1, 0)
    assert tokenizer.decode(ids[1:]) == text[len("<s>") :]
    # Without the break it is the template's own, as the library reads it.
    whole = tokenizer.encode_prompt(Prompt(text))
    assert whole == tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
    assert whole.count(eos or -1) == 1


def test_bos_is_added_to_raw_text(tokenizer: ChatTokenizer) -> None:
    assert tokenizer.add_bos
    assert tokenizer.encode_raw("hello")[0] == tokenizer.bos_id == 1
