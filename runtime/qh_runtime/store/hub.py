"""What a hub says of a repository: its files at a pinned commit, its licence and its terms.

The hub is asked by its own client library, which knows endpoints, tokens, proxies and the offline
switch (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE). Nothing in its answer is believed: every field is
checked here, and a file counts only if its name, size and hash are sound. The library is imported
by the first question, because that takes a noticeable moment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import QhError, StoreError
from qh_runtime.store.hub_errors import disabled, hub_failure, retry_delay_s, unsound
from qh_runtime.store.hub_session import bounded_session
from qh_runtime.store.layout import model_slug
from qh_runtime.store.names import check_file_name
from qh_runtime.store.transfer import FetchOptions, RemoteFile, StopSignal

__all__ = ["RepoListing", "hub_endpoint", "hub_token", "list_repo", "remote_file"]

# No file of a model is a pebibyte; sums of sizes stay far from any limit.
MAX_FILE_BYTES = 1 << 50
MAX_FILES = 50_000
_TRIES = 4
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class RepoListing:
    """A repository at one commit.

    Attributes:
        repo: as asked for. revision: as asked for, "" for the usual branch.
        commit: 40 hexadecimal digits; every url names it.
        endpoint: the hub's address.
        license: as the card says, printable, "" where it says nothing.
        gated: terms must be accepted before files are given out.
        tags, base_model: of the card; base_model holds only what can be a hub name.
        files: those with sound name, size and hash, in the hub's order.
        unsound: quoted name to what is wrong with it, for the others.
    """

    repo: str
    revision: str
    commit: str
    endpoint: str
    license: str
    gated: bool
    tags: tuple[str, ...]
    base_model: tuple[str, ...]
    files: tuple[RemoteFile, ...]
    unsound: Mapping[str, str] = field(default_factory=dict)

    @property
    def page(self) -> str:
        """The repository's page."""
        return f"{self.endpoint}/{self.repo}"

    def find(self, path: str) -> RemoteFile | None:
        """The file of this name, or None.

        Raises:
            StoreError: it is there twice, or its name, size or hash is not sound. Facts: file.
        """
        wrong = self.unsound.get(quoted(path))
        if wrong is not None:
            raise unsound(self.repo, f"{quoted(path)}: {wrong}", file=path)
        found = self._by_path.get(path, [])
        if len(found) > 1:
            raise unsound(self.repo, f"{quoted(path)}: listed twice", file=path)
        return found[0] if found else None

    @cached_property
    def _by_path(self) -> dict[str, list[RemoteFile]]:
        found: dict[str, list[RemoteFile]] = {}
        for file in self.files:
            found.setdefault(file.path, []).append(file)
        return found


def list_repo(
    repo: str,
    revision: str = "",
    *,
    endpoint: str | None = None,
    options: FetchOptions | None = None,
    stop: StopSignal | None = None,
) -> RepoListing | None:
    """Return what the hub says of a repository at a branch, tag or commit; None if stopped.

    Args:
        revision: "" for the usual branch.
        endpoint: another hub than the one of HF_ENDPOINT.
        options: its token, instead of the stored one, and its pauses between attempts.

    Raises:
        ModelNotFoundError: no such repository or revision, or it may not be seen. Facts: name.
        DownloadError: offline, unreachable, or an answer that makes no sense. Facts: url, status.
        StoreError: not the name of a repository; terms to accept; an unsound commit or file list.
    """
    options, stop = options or FetchOptions(), stop or StopSignal()
    if not _HUB_NAME.fullmatch(repo) or (revision and not _is_revision(revision)):
        raise StoreError(
            f"{quoted(repo)} at {quoted(revision or 'its usual branch')}: expected a hub name such "
            "as org/model, and the name of a branch, a tag or a commit",
            hint="copy the name from the model's page",
            name=repo,
        )
    # Names of the store are stricter in a few odd cases.
    model_slug(repo)
    where = hub_endpoint(endpoint)
    attempt = 0
    while True:
        attempt += 1
        try:
            info = _model_info(repo, revision, where, options)
            break
        except QhError:
            raise
        except Exception as error:
            delay = retry_delay_s(error, attempt, options) if attempt < _TRIES else None
            if delay is None:
                raise hub_failure(error, repo, revision, where) from error
            if stop.wait(delay):
                return None
    return _listing(repo, revision, where, info)


def remote_file(endpoint: str, repo: str, commit: str, **fields: Any) -> RemoteFile:
    """Return a file whose url names the commit; path, size, sha256 and git_sha1 are given."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repo, fields["path"], revision=commit, endpoint=endpoint)
    return RemoteFile(url=url, **fields)


def hub_endpoint(endpoint: str | None = None) -> str:
    """Return the hub's address: the given one, else that of HF_ENDPOINT, else the public one.

    Raises:
        StoreError: not https (http is taken for this machine alone), or with a user or a query.
    """
    if endpoint is None:
        from huggingface_hub import constants

        endpoint = str(constants.ENDPOINT)
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    local = parts.scheme == "http" and host in _LOOPBACK
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if not host or not plain or port == 0 or not (parts.scheme == "https" or local):
        raise StoreError(
            f"hub {quoted(endpoint)}: expected an address such as https://huggingface.co",
            hint="correct HF_ENDPOINT, or leave it out",
            endpoint=endpoint,
        )
    return endpoint.rstrip("/")


def hub_token(url: str, endpoint: str) -> str | None:
    """Return the stored token of the hub if this url is on the hub's own host, else None.

    Raises:
        StoreError: the library cannot get at the token.
    """
    ours, theirs = urlsplit(endpoint), urlsplit(url)
    if (ours.scheme, ours.netloc) != (theirs.scheme, theirs.netloc):
        return None
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    try:
        return get_token()
    except Exception as error:
        raise StoreError(
            f"hub token: cannot be read: {quoted(str(error))}",
            hint="log in again with: hf auth login",
            endpoint=endpoint,
        ) from error


def _model_info(repo: str, revision: str, endpoint: str, options: FetchOptions) -> Any:
    from huggingface_hub import HfApi

    # Compressed answers could not be bounded; see hub_session.
    api = HfApi(
        endpoint=endpoint,
        token=options.token,
        library_name="qh-chat",
        headers={"accept-encoding": "identity"},
    )
    with bounded_session():
        return api.model_info(
            repo, revision=revision or None, files_metadata=True, timeout=options.connect_timeout_s
        )


def _listing(repo: str, revision: str, endpoint: str, info: Any) -> RepoListing:
    commit = info.sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise unsound(repo, f"commit: expected 40 hexadecimal digits, found {quoted(commit)}")
    if _COMMIT.fullmatch(revision) and commit != revision:
        raise unsound(repo, f"commit: expected {revision}, found {commit}")
    if info.disabled:
        raise disabled(repo)
    siblings = info.siblings
    if not isinstance(siblings, list) or len(siblings) > MAX_FILES:
        raise unsound(repo, f"files: expected a list of at most {MAX_FILES}")
    files: list[RemoteFile] = []
    wrong: dict[str, str] = {}
    for sibling in siblings:
        fields, problem = _file(sibling)
        if problem:
            wrong[quoted(sibling.rfilename)] = problem
        else:
            files.append(remote_file(endpoint, repo, commit, **fields))
    card = info.card_data
    return RepoListing(
        repo=repo,
        revision=revision,
        commit=commit,
        endpoint=endpoint,
        license=_license(card),
        gated=info.gated not in (None, False, "false"),
        tags=tuple(_words(info.tags)[:100]),
        base_model=tuple(x for x in _words(_field(card, "base_model")) if _HUB_NAME.fullmatch(x)),
        files=tuple(files),
        unsound=wrong,
    )


def _file(sibling: Any) -> tuple[dict[str, Any], str]:
    """The checked fields of a file, and what is wrong with it, "" for a sound one."""
    name, size, lfs = sibling.rfilename, sibling.size, sibling.lfs
    try:
        check_file_name(name)
    except StoreError:
        return {}, "expected a plain relative name"
    if type(size) is not int or not 0 <= size <= MAX_FILE_BYTES:
        return {}, f"size: expected 0..{MAX_FILE_BYTES} bytes, found {quoted(size)}"
    if lfs is None:
        git = sibling.blob_id
        if not isinstance(git, str) or not _COMMIT.fullmatch(git):
            return {}, f"git hash: expected 40 hexadecimal digits, found {quoted(git)}"
        return {"path": name, "size": size, "sha256": "", "git_sha1": git}, ""
    sha256, stored = lfs.sha256, lfs.size
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        return {}, f"SHA-256: expected 64 hexadecimal digits, found {quoted(sha256)}"
    if type(stored) is not int or stored != size:
        return {}, f"size: listed with {size} bytes and with {quoted(stored)}"
    return {"path": name, "size": size, "sha256": sha256, "git_sha1": ""}, ""


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and ".." not in text


def _field(card: Any, name: str) -> Any:
    return getattr(card, name, None) if card is not None else None


def _license(card: Any) -> str:
    """The licence in a few words; a licence of one's own counts by its name."""
    words = _words(_field(card, "license"))
    if words == ["other"]:
        words = _words(_field(card, "license_name")) or words
    return ", ".join(words)[:100]


def _words(value: Any) -> list[str]:
    """The short printable strings in a string or a list."""
    found = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [
        x
        for x in found
        if isinstance(x, str) and 0 < len(x) <= 200 and x.isascii() and x.isprintable()
    ]
