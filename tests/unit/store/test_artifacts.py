"""Which files are one model: nothing but those are taken, and what is refused is named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pytest

from qh_runtime.errors import StoreError
from qh_runtime.store.artifacts import Artifact, artifact_names, choose_artifact, with_shards
from qh_runtime.store.hub import RepoListing
from qh_runtime.store.transfer import RemoteFile
from tests.unit.store.code_repositories import CODE_REPOSITORIES, REFUSED_BY_NAMES

INDEX = "model.safetensors.index.json"
SIDE = ("config.json", "tokenizer.json")


def listing(
    paths: Iterable[str], *, size: int = 10, base_model: tuple[str, ...] = ()
) -> RepoListing:
    files = tuple(
        RemoteFile(x, size, hashlib.sha256(x.encode()).hexdigest(), "", f"https://hub/{x}")
        for x in paths
    )
    return RepoListing(
        repo="org/model",
        revision="",
        commit="0" * 40,
        endpoint="https://hub",
        license="",
        gated=False,
        tags=(),
        base_model=base_model,
        files=files,
        unsound={"'broken.safetensors'": "size: expected 0..9, found None"},
    )


def chosen(paths: Iterable[str], name: str = "") -> dict[str, str]:
    """Name in the store to name in the repository."""
    artifact = choose_artifact(listing(paths), name)
    return {x.path: x.remote.path for x in artifact.files}


def refused(paths: Iterable[str], name: str = "", base: tuple[str, ...] = ()) -> StoreError:
    with pytest.raises(StoreError) as caught:
        choose_artifact(listing(paths, base_model=base), name)
    assert str(caught.value).isprintable()
    assert caught.value.hint
    assert caught.value.facts["name"] == "org/model"
    return caught.value


def test_one_file_of_weights_and_what_the_loader_reads() -> None:
    side = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
            "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "LICENSE",
            "NOTICE.txt", "USE_POLICY.md")  # fmt: skip
    others = ("README.md", ".gitattributes", "modeling_x.py", "pytorch_model.bin", "model.gguf",
              "consolidated.safetensors", "tokenizer.model", "vocab.json", "merges.txt",
              "onnx/model.onnx", "original/params.json", "config.json.bak", "x.json")  # fmt: skip
    found = choose_artifact(listing((*others, *side, "model.safetensors")))
    assert {x.path for x in found.files} == {*side, "model.safetensors"}
    assert [x.path for x in found.weights] == ["model.safetensors"]
    assert found.files[-1].kind == "weights"
    assert not found.sharded
    assert found.side_files == found.files[:-1]


def test_shards_are_those_that_the_index_names() -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    repo = listing((*SIDE, INDEX, *shards, "model-00009-of-00009.safetensors"))
    artifact = choose_artifact(repo)
    assert artifact.sharded
    assert artifact.weights == ()
    assert INDEX in [x.path for x in artifact.side_files]
    whole = with_shards(repo, artifact, [*reversed(shards), shards[0]])
    assert [x.path for x in whole.weights] == shards
    assert whole.side_files == artifact.side_files
    with pytest.raises(StoreError) as caught:
        with_shards(repo, artifact, [shards[0], "model-00003-of-00003.safetensors"])
    assert caught.value.facts["file"] == "model-00003-of-00003.safetensors"


def test_one_file_wins_over_an_index_as_in_the_loader() -> None:
    assert INDEX not in chosen((*SIDE, INDEX, "model.safetensors"))


def test_a_folder_is_an_artifact_that_borrows_from_above() -> None:
    paths = (*SIDE, "LICENSE", "fp16/config.json", "fp16/model.safetensors", "fp16/modeling.py")
    assert artifact_names(listing(paths)) == ("fp16",)
    assert chosen(paths, "fp16") == {
        "config.json": "fp16/config.json",
        "tokenizer.json": "tokenizer.json",
        "LICENSE": "LICENSE",
        "model.safetensors": "fp16/model.safetensors",
    }
    error = refused(paths)
    assert error.facts["artifacts"] == ("fp16",)
    assert "org/model:fp16" in str(error)


def test_shards_of_a_folder_come_from_the_folder() -> None:
    shard = "model-00001-of-00001.safetensors"
    repo = listing((*SIDE, f"b/{INDEX}", f"b/{shard}", shard))
    whole: Artifact = with_shards(repo, choose_artifact(repo, "b"), [shard])
    assert [(x.path, x.remote.path) for x in whole.weights] == [(shard, f"b/{shard}")]


def test_deeper_folders_and_folders_that_cannot_be_named_are_no_artifacts() -> None:
    paths = ["a/b/model.safetensors", "_x/model.safetensors", "x-/model.safetensors"]
    assert artifact_names(listing(paths)) == ()


@pytest.mark.parametrize("missing", SIDE)
def test_a_needed_file_is_missing(missing: str) -> None:
    others = [x for x in (*SIDE, "model.safetensors", "tokenizer.model") if x != missing]
    error = refused(others)
    assert (error.facts["rule"], error.facts["file"]) == ("missing file", missing)
    if missing == "tokenizer.json":
        assert "tokenizer.model" in str(error)


@pytest.mark.parametrize("path", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_side_file_that_no_reader_would_take_is_not_fetched(path: str) -> None:
    names = (*SIDE, "tokenizer_config.json", "model.safetensors")
    repo = listing(names)
    files = tuple(
        RemoteFile(x.path, (65 << 20) if x.path == path else 10, x.sha256, "", x.url)
        for x in repo.files
    )
    with pytest.raises(StoreError) as caught:
        choose_artifact(RepoListing(**{**vars(repo), "files": files}))
    assert (caught.value.facts["rule"], caught.value.facts["file"]) == ("size", path)


def test_licences_are_few_small_and_apart() -> None:
    names = [f"LICENSE-{x}" for x in "abcdefghijkl"]
    assert len([x for x in chosen((*SIDE, "model.safetensors", *names)) if "LIC" in x]) == 8
    both = chosen((*SIDE, "model.safetensors", "LICENSE", "License", "license.md"))
    assert [x for x in both if "icense" in x.lower()] == ["LICENSE", "license.md"]
    assert (
        len(choose_artifact(listing((*SIDE, "model.safetensors", "LICENSE"), size=1 << 20)).files)
        == 4
    )
    big = listing((*SIDE, "model.safetensors"), size=10)
    huge = RemoteFile("LICENSE", 2 << 20, "0" * 64, "", "https://hub/LICENSE")
    assert (
        len(choose_artifact(RepoListing(**{**vars(big), "files": (*big.files, huge)})).files) == 3
    )


@pytest.mark.parametrize("kind", sorted(REFUSED_BY_NAMES))
def test_repositories_of_code_pickles_and_the_like_are_refused_by_their_names(kind: str) -> None:
    error = refused(CODE_REPOSITORIES[kind], base=("org/base", "org/model"))
    assert error.facts["rule"] == REFUSED_BY_NAMES[kind]
    assert "org/base" in str(error)


def test_gguf_is_named_with_the_reason() -> None:
    error = refused(["m-Q4_K_M.gguf", "m-Q8_0.gguf", "config.json"])
    assert error.facts["found"] == ("gguf",)
    assert "m-Q4_K_M.gguf" in str(error)
    assert "1 more" in str(error)
    assert "not read" in str(error)


def test_nothing_at_all_and_no_such_artifact() -> None:
    assert refused([]).facts["rule"] == "nothing"
    error = refused((*SIDE, "model.safetensors"), "no-such")
    assert error.facts["artifacts"] == ("",)
    assert "try org/model" in str(error)


def test_weights_that_are_there_but_unsound_are_not_called_missing() -> None:
    repo = RepoListing(**{**vars(listing(SIDE)), "unsound": {"'model.safetensors'": "bad hash"}})
    with pytest.raises(StoreError) as caught:
        choose_artifact(repo)
    assert caught.value.facts["rule"] == "unsound"
    assert "bad hash" in str(caught.value)
