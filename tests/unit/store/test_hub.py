"""What a hub says: read with the real client library, believed in no field."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.errors import DownloadError, ModelNotFoundError, QhError, StoreError
from qh_runtime.store import hub_session
from qh_runtime.store.hub import RepoListing, hub_endpoint, hub_token, list_repo
from qh_runtime.store.transfer import FetchOptions, StopSignal
from tests.support.hub_stub import TOKEN, HubStub, git_sha1
from tests.unit.store.hostile_names import COMMITS, DIGESTS, NAMES, REPOSITORIES, REVISIONS, SIZES

FAST = FetchOptions(retry_delay_s=0.001, max_delay_s=0.01)
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "sub/notes.txt": b"x"}


def listed(hub: HubStub, repo: str = "org/model", revision: str = "") -> RepoListing:
    listing = list_repo(repo, revision, endpoint=hub.endpoint, options=FAST)
    assert listing is not None
    return listing


def refused(hub: HubStub, kind: type[QhError], repo: str = "org/model", rev: str = "") -> QhError:
    """The error, one printable line without the token."""
    with pytest.raises(kind) as caught:
        listed(hub, repo, rev)
    text = str(caught.value)
    assert text.isprintable()
    assert text.isascii()
    assert len(text) < 600
    assert TOKEN not in text
    assert caught.value.hint
    return caught.value


def test_a_listing_is_pinned_to_its_commit(hub: HubStub) -> None:
    card = {"license": "other", "license_name": "my-terms", "base_model": ["org/base", "../x"]}
    repo = hub.add("org/model", FILES, card=card, gated="manual")
    listing = listed(hub)
    commit = repo.branches["main"]
    assert (listing.repo, listing.revision, listing.commit) == ("org/model", "", commit)
    assert (listing.license, listing.gated) == ("my-terms", True)
    assert listing.base_model == ("org/base",)
    assert listing.tags == ("safetensors", "text-generation")
    assert listing.page == f"{hub.endpoint}/org/model"
    by_path = {x.path: x for x in listing.files}
    assert sorted(by_path) == sorted(FILES)
    for path, content in FILES.items():
        file = by_path[path]
        assert file.size == len(content)
        assert file.url == f"{hub.endpoint}/org/model/resolve/{commit}/{path}"
    assert by_path["config.json"].git_sha1 == git_sha1(b"{}")
    assert by_path["config.json"].key == f"git-{git_sha1(b'{}')}"
    assert by_path["model.safetensors"].git_sha1 == ""
    assert by_path["model.safetensors"].key == by_path["model.safetensors"].sha256
    assert listing.find("no such file") is None


def test_branches_tags_and_commits(hub: HubStub) -> None:
    repo = hub.add("org/model", FILES)
    first = repo.branches["main"]
    second = repo.push({**FILES, "config.json": b'{"a": 1}'}, "dev")
    assert listed(hub, revision="dev").commit == second
    assert listed(hub, revision=first).commit == first
    repo.lie = lambda answer: answer.update(sha=second)
    error = refused(hub, StoreError, rev=first)
    assert error.facts["rule"] == "unsound"


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_with_a_hostile_name_is_no_file(hub: HubStub, name: Any) -> None:
    def lie(answer: dict[str, Any]) -> None:
        answer["siblings"].append({**answer["siblings"][1], "rfilename": name})

    hub.add("org/model", FILES, lie=lie)
    try:
        listing = listed(hub)
    except DownloadError:
        # What the library cannot make a file entry of at all.
        assert not isinstance(name, str)
        return
    assert sorted(x.path for x in listing.files) == sorted(FILES)
    assert len(listing.unsound) == 1
    assert next(iter(listing.unsound)).isprintable()


@pytest.mark.parametrize("digest", DIGESTS, ids=ascii)
def test_a_file_with_a_hostile_digest_is_refused_when_needed(hub: HubStub, digest: Any) -> None:
    def lie(answer: dict[str, Any]) -> None:
        answer["siblings"][0]["blobId"] = digest
        answer["siblings"][1]["lfs"]["sha256"] = digest

    hub.add("org/model", FILES, lie=lie)
    listing = listed(hub)
    assert [x.path for x in listing.files] == ["sub/notes.txt"]
    for path in ("config.json", "model.safetensors"):
        with pytest.raises(StoreError) as caught:
            listing.find(path)
        assert caught.value.facts["file"] == path
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("size", SIZES, ids=ascii)
def test_a_file_with_a_hostile_size_is_refused_when_needed(hub: HubStub, size: Any) -> None:
    def lie(answer: dict[str, Any]) -> None:
        answer["siblings"][0]["size"] = size
        answer["siblings"][1]["lfs"]["size"] = size

    hub.add("org/model", FILES, lie=lie)
    try:
        listing = listed(hub)
    except DownloadError:
        return
    assert [x.path for x in listing.files] == ["sub/notes.txt"]
    with pytest.raises(StoreError):
        listing.find("model.safetensors")


@pytest.mark.parametrize("commit", COMMITS, ids=ascii)
def test_a_hostile_commit_is_refused(hub: HubStub, commit: Any) -> None:
    hub.add("org/model", FILES, lie=lambda answer: answer.update(sha=commit))
    assert refused(hub, StoreError).facts["rule"] == "unsound"


@pytest.mark.parametrize("repo", REPOSITORIES, ids=ascii)
def test_what_is_no_repository_is_not_asked_for(hub: HubStub, repo: str) -> None:
    refused(hub, StoreError, repo)
    assert hub.asked == []


@pytest.mark.parametrize("revision", REVISIONS, ids=ascii)
def test_what_is_no_revision_is_not_asked_for(hub: HubStub, revision: str) -> None:
    hub.add("org/model", FILES)
    refused(hub, StoreError, rev=revision)
    assert hub.asked == []


def test_a_name_that_is_listed_twice_is_refused_when_needed(hub: HubStub) -> None:
    def lie(answer: dict[str, Any]) -> None:
        answer["siblings"].append({**answer["siblings"][0], "size": 3})

    hub.add("org/model", FILES, lie=lie)
    listing = listed(hub)
    with pytest.raises(StoreError):
        listing.find("config.json")
    assert listing.find("model.safetensors") is not None


ODD_FIELDS: list[dict[str, Any]] = [
    {"siblings": None},
    {"siblings": {}},
    {"siblings": "model.safetensors"},
    {"siblings": [1]},
    {"siblings": [{}]},
    {"siblings": [{"rfilename": "a", "lfs": []}] * 2},
    {"siblings": [{"rfilename": "a", "lfs": {"size": 1}}]},
    {"cardData": []},
    {"cardData": {"license": {"a": 1}}},
    {"cardData": {"license": "\x1b]0;x\x07" * 9}},
    {"cardData": {"base_model": {"a": ["b"]}}},
    {"cardData": {"base_model": [None, 1, "x" * 10_000]}},
    {"cardData": {"model-index": 7}},
    {"tags": {"a": 1}},
    {"tags": [1, None, "\u202e", "y" * 999]},
    {"gated": [1]},
    {"gated": "\x1b[31m"},
    {"lastModified": "soon"},
    {"lastModified": 10**30},
    {"createdAt": {}},
    {"safetensors": 3},
    {"transformersInfo": 3},
    {"inferenceProviderMapping": 3},
    {"id": None},
    {"disabled": True},
    {"disabled": "yes"},
]


@pytest.mark.parametrize("fields", ODD_FIELDS, ids=lambda x: ascii(x)[:40])
def test_fields_of_any_type_are_refused_or_left_out(hub: HubStub, fields: dict[str, Any]) -> None:
    hub.add("org/model", FILES, lie=lambda answer: answer.update(fields))
    try:
        listing = listed(hub)
    except StoreError:
        refused(hub, StoreError)
        return
    for text in (listing.license, *listing.tags, *listing.base_model):
        assert text.isprintable()
        assert len(text) <= 200
    assert type(listing.gated) is bool


ANSWERS = {
    "nothing": b"",
    "cut": b'{"id": "org/model", "sha": "',
    "a list": b"[]",
    "a page": b"<html>Log in to this network</html>",
    "deep": b"[" * 200_000,
    "not UTF-8": b'{"id": "\xff\xfe"}',
    "two": b"{}{}",
    "a long number": b'{"id": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_that_make_no_sense(hub: HubStub, kind: str) -> None:
    hub.add("org/model", FILES, lie=lambda _: ANSWERS[kind])
    error = refused(hub, DownloadError)
    assert error.facts["name"] == "org/model"
    assert len(hub.asked) == 1  # asking again would not help


def test_a_huge_answer_is_not_read_to_its_end(
    hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_session, "MAX_ANSWER_BYTES", 10_000)
    hub.add("org/model", FILES, lie=lambda _: b'{"a": "' + b"x" * 20_000 + b'"}')
    assert refused(hub, DownloadError).facts["rule"] == "answer"


def test_a_slow_answer_is_given_up(hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_session, "MAX_ANSWER_S", -1.0)
    hub.add("org/model", FILES)
    assert refused(hub, DownloadError).facts["rule"] == "answer"


def test_a_compressed_answer_is_refused_because_it_could_be_a_bomb(hub: HubStub) -> None:
    hub.add("org/model", FILES, lie=lambda _: gzip.compress(b" " * 1_000_000))
    hub.headers = {"Content-Encoding": "gzip"}
    assert refused(hub, DownloadError).facts["rule"] == "answer"


def test_a_redirect_to_plain_http_elsewhere_is_refused(hub: HubStub) -> None:
    hub.add("org/model", FILES)
    hub.failures = [302]
    hub.headers = {"Location": "http://hub.example/api/models/org/model"}
    assert refused(hub, DownloadError).facts["rule"] == "answer"
    assert len(hub.asked) == 1


def test_bounds_are_gone_after_the_question(hub: HubStub) -> None:
    from huggingface_hub import get_session

    hub.add("org/model", FILES)
    listed(hub)
    refused(hub, ModelNotFoundError, "org/none")
    assert get_session().event_hooks["response"] == []
    assert len(get_session().event_hooks["request"]) == 1


def test_no_such_repository_or_revision(hub: HubStub) -> None:
    hub.add("org/model", FILES)
    error = refused(hub, ModelNotFoundError, "org/none")
    assert error.facts["name"] == "org/none"
    assert error.facts["status"] == 401
    error = refused(hub, ModelNotFoundError, rev="no-such-branch")
    assert error.facts["revision"] == "no-such-branch"


def test_a_repository_that_the_hub_has_closed(hub: HubStub) -> None:
    repo = hub.add("org/model", FILES, lie=lambda answer: answer.update(disabled=True))
    assert refused(hub, StoreError).facts["rule"] == "disabled"
    repo.lie = None
    hub.failures = [403]
    hub.headers = {"X-Error-Message": "Access to this resource is disabled."}
    assert refused(hub, StoreError).facts["rule"] == "disabled"


def test_metadata_can_be_gated_too(hub: HubStub) -> None:
    hub.add("org/model", FILES)
    hub.failures, hub.headers = [403], {"X-Error-Code": "GatedRepo"}
    assert refused(hub, StoreError).facts["rule"] == "gated"
    hub.failures, hub.headers = [403], {}
    assert refused(hub, DownloadError).facts["status"] == 403


def test_a_library_without_bounds_is_refused(hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/model", FILES)
    monkeypatch.setattr("huggingface_hub.get_session", object)
    assert "1.0" in str(refused(hub, StoreError))
    assert hub.asked == []


def test_a_private_repository_needs_the_token(
    hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", FILES, private=True)
    refused(hub, ModelNotFoundError)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert listed(hub).files
    monkeypatch.delenv("HF_TOKEN")
    with_token = FetchOptions(token=TOKEN)
    assert list_repo("org/model", endpoint=hub.endpoint, options=with_token) is not None


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_outlived(hub: HubStub, status: int) -> None:
    hub.add("org/model", FILES)
    hub.failures = [status, status]
    assert listed(hub).files
    assert [x.status for x in hub.asked] == [status, status, 200]


def test_lasting_failures_are_named(hub: HubStub) -> None:
    hub.add("org/model", FILES)
    hub.failures = [503] * 50
    error = refused(hub, DownloadError)
    assert error.facts["status"] == 503
    assert len(hub.asked) == 4
    hub.failures, hub.asked[:] = [418], []
    assert refused(hub, DownloadError).facts["status"] == 418
    assert len(hub.asked) == 1


def test_a_stop_ends_the_pauses(hub: HubStub) -> None:
    hub.add("org/model", FILES)
    hub.failures = [503] * 50
    stop = StopSignal()
    stop.stop()
    slow = FetchOptions(retry_delay_s=1000, max_delay_s=1000)
    assert list_repo("org/model", endpoint=hub.endpoint, options=slow, stop=stop) is None
    assert len(hub.asked) == 1


def test_a_hub_that_is_not_there(hub: HubStub) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError) as caught:
        list_repo("org/model", endpoint=f"http://127.0.0.1:{port}", options=FAST)
    assert caught.value.facts["status"] is None
    assert "HF_ENDPOINT" in str(caught.value.hint)


def test_offline_is_said(hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.add("org/model", FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused(hub, DownloadError).facts["rule"] == "offline"
    assert hub.asked == []


@pytest.mark.parametrize(
    "address",
    ["", "huggingface.co", "http://huggingface.co", "ftp://x", "https://u:p@x", "https://x?y=1",
     "https://x#y", "file:///etc", "https://", "http://127.0.0.1.evil.example", "https://x:99999999",
     "https://[", "http://localhost@evil.example"],
)  # fmt: skip
def test_only_encrypted_hubs(address: str) -> None:
    with pytest.raises(StoreError):
        hub_endpoint(address)


def test_mirrors_and_this_machine() -> None:
    for address in ("https://mirror.example/hf", "http://127.0.0.1:9", "http://localhost:9"):
        assert hub_endpoint(address + "/") == address


def test_the_token_is_for_the_hub_alone(hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_token(f"{hub.endpoint}/a", hub.endpoint) is None
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub_token(f"{hub.endpoint}/a", hub.endpoint) == TOKEN
    for url in ("https://cdn.example/a", hub.content_host, "http://127.0.0.1/a",
                hub.endpoint.replace("http", "https")):  # fmt: skip
        assert hub_token(url, hub.endpoint) is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert hub_token(f"{hub.endpoint}/a", hub.endpoint) is None


def test_a_token_that_cannot_be_had(hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_OIDC_RESOURCE", "models/org/model")
    with pytest.raises(StoreError) as caught:
        hub_token(f"{hub.endpoint}/a", hub.endpoint)
    assert "hf auth login" in str(caught.value)


_PROBE = """
import json, sys
from qh_runtime.store import hub, artifacts
early = "huggingface_hub" in sys.modules
listing = hub.list_repo("org/model")
token = hub.hub_token(listing.files[0].url, listing.endpoint)
print(json.dumps([early, listing.endpoint, [x.path for x in listing.files], token]))
"""


_OFFLINE_PROBE = """
import sys
import huggingface_hub.hf_api
from qh_chat.offline import OfflineError, go_offline
from qh_runtime.store.hub import list_repo
go_offline()
try:
    list_repo("org/model")
except OfflineError as error:
    print("refused", error.hint)
"""


def test_the_switch_of_the_app_is_stronger_than_the_library(hub: HubStub, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(x for x in sys.path if x),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", _OFFLINE_PROBE],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--offline" in done.stdout
    assert hub.asked == []


def test_a_process_of_its_own_follows_the_environment(hub: HubStub, tmp_path: Path) -> None:
    hub.add("org/model", FILES, private=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(x for x in sys.path if x),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": TOKEN,
    }
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [False, hub.endpoint, list(FILES), TOKEN]
    # The stored token counts as well.
    (tmp_path / "token").write_text(TOKEN)
    del environment["HF_TOKEN"]
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)[3] == TOKEN
