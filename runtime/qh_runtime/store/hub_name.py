"""What a person types or pastes for a model of the hub, taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import StoreError

__all__ = ["HubName", "hub_name"]

_PUBLIC = ("huggingface.co", "www.huggingface.co", "hf.co")
# What the pages of a repository put between its name and a revision.
_VIEWS = ("tree", "blob", "resolve", "raw", "commit", "commits")


@dataclass(frozen=True)
class HubName:
    """A repository, and what of it; revision and artifact are "" for the usual ones."""

    repo: str
    revision: str = ""
    artifact: str = ""


def hub_name(text: str, endpoint: str = "") -> HubName:
    """Return what `org/model@revision:artifact` or the address of a model's page stands for.

    Of a page the revision counts, where it shows one, and of a folder's page the folder. The name
    itself is checked by whoever uses it.

    Args:
        endpoint: whose pages count besides those of the public hub.

    Raises:
        StoreError: an address that is no page of a model, or on another host. Facts: name.
    """
    text = text.strip()
    host, path = _address(text)
    if not host:
        rest, _, artifact = text.partition(":")
        repo, _, revision = rest.partition("@")
        return HubName(repo, revision, artifact)
    own = urlsplit(endpoint)
    if host not in (*_PUBLIC, own.netloc):
        raise StoreError(
            f"{quoted(text)}: expected a page of {own.netloc or _PUBLIC[0]}, found one of "
            f"{quoted(host)}",
            hint="name another hub with --endpoint or HF_ENDPOINT",
            name=text,
        )
    base = own.path.rstrip("/") if host == own.netloc else ""
    parts = [unquote(x) for x in path.removeprefix(base).split("/") if x]
    page = len(parts) >= 2 and (len(parts) == 2 or parts[2] in _VIEWS or parts[2] == "discussions")
    if not page or parts[0] in ("datasets", "spaces", "collections", "docs", "api"):
        raise StoreError(
            f"{quoted(text)}: expected the page of a model, such as https://{host}/org/model",
            hint="copy the name from the model's page",
            name=text,
        )
    repo, view = "/".join(parts[:2]), parts[2] if len(parts) > 2 else ""
    revision = parts[3] if view in _VIEWS and len(parts) > 3 else ""
    artifact = parts[4] if view == "tree" and len(parts) == 5 else ""
    return HubName(repo, "" if revision == "main" else revision, artifact)


def _address(text: str) -> tuple[str, str]:
    """Host with port and path of an address, also one without its scheme; "" for a name."""
    if "://" not in text:
        if text.partition("/")[0].lower() not in _PUBLIC:
            return "", ""
        text = f"https://{text}"
    try:
        parts = urlsplit(text)
    except ValueError:
        return "", ""
    if parts.scheme.lower() not in ("http", "https"):
        return "", ""
    # A user, a query and a mark within the page are no part of a name.
    return parts.netloc.rpartition("@")[2].lower(), parts.path
