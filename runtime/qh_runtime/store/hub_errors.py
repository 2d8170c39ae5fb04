"""Failures of the hub in the project's own words: what was asked, why not, and the next step."""

from __future__ import annotations

import re
from typing import Any

from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import DownloadError, ModelNotFoundError, QhError, StoreError
from qh_runtime.store.hub_session import AnswerRefused
from qh_runtime.store.transfer import FetchOptions

__all__ = ["disabled", "hub_failure", "retry_delay_s", "terms_failure", "unsound"]

_TOKEN_HINT = "run: hf auth login (or set HF_TOKEN)"
_RETRIED = (408, 429, 500, 502, 503, 504)


def unsound(repo: str, message: str, **facts: Any) -> StoreError:
    """The error for an answer that breaks a rule; the caller raises it."""
    return StoreError(
        f"{repo}: {message}",
        hint="do not use this repository or this hub",
        name=repo,
        rule="unsound",
        **facts,
    )


def disabled(repo: str) -> StoreError:
    """The error for a repository that the hub has closed; the caller raises it."""
    return StoreError(
        f"{repo}: the hub has disabled this repository",
        hint="choose another one",
        name=repo,
        rule="disabled",
    )


def terms_failure(error: DownloadError, repo: str, endpoint: str, gated: bool) -> StoreError | None:
    """The error to raise in place of a refused download, if terms are what it was refused for."""
    return _gated(repo, endpoint) if gated and error.facts.get("status") in (401, 403) else None


def _gated(repo: str, endpoint: str) -> StoreError:
    return StoreError(
        f"{repo}: its files are given out only to those who accepted its terms",
        hint=f"accept them on {endpoint}/{repo} with your account there, then {_TOKEN_HINT}",
        name=repo,
        rule="gated",
        page=f"{endpoint}/{repo}",
    )


def retry_delay_s(error: Exception, attempt: int, options: FetchOptions) -> float | None:
    """How long to wait before the question is asked again; None where that is no use."""
    if isinstance(error, AnswerRefused):
        return None
    status = _status(error)
    if status is None and not _is_transport(error):
        return None
    if status is not None and status not in _RETRIED:
        return None
    delay = options.retry_delay_s * float(2 ** (attempt - 1))
    return min(max(delay, _retry_after_s(error)), options.max_delay_s)


def hub_failure(error: Exception, repo: str, revision: str, endpoint: str) -> QhError:
    """The error to raise for whatever came out of the library."""
    from huggingface_hub import errors

    url = f"{endpoint}/api/models/{repo}"
    facts: dict[str, Any] = {"name": repo, "url": url, "status": _status(error)}
    if isinstance(error, AnswerRefused):
        return DownloadError(
            f"{repo}: {endpoint}: {error}", hint="do not use this hub", rule="answer", **facts
        )
    if isinstance(error, errors.GatedRepoError):
        return _gated(repo, endpoint)
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"{repo}: expected a model on {endpoint}, found none that may be seen",
            hint=f"check its spelling; if it is private, {_TOKEN_HINT}",
            known=(),
            **facts,
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFoundError(
            f"{repo}: expected a branch, tag or commit {quoted(revision)}, found none",
            hint=f"see {endpoint}/{repo}/tree/main",
            known=(),
            revision=revision,
            **facts,
        )
    if isinstance(error, errors.DisabledRepoError):
        return disabled(repo)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return DownloadError(
            f"{repo}: the hub is not asked while offline",
            hint="leave --offline out, and unset HF_HUB_OFFLINE",
            rule="offline",
            **facts,
        )
    if isinstance(error, errors.HFValidationError):
        return StoreError(
            f"{quoted(repo)}: expected a hub name such as org/model",
            hint="copy the name from the model's page",
            name=repo,
        )
    return _http_failure(error, repo, endpoint, facts)


def _http_failure(
    error: Exception, repo: str, endpoint: str, facts: dict[str, Any]
) -> DownloadError:
    status = facts["status"]
    if status in (401, 403):
        message, hint = f"access refused (HTTP {status})", _TOKEN_HINT
    elif status is not None:
        message, hint = f"HTTP {status}", "try again later"
    elif _is_transport(error):
        message = f"not reached: {_reason(error)}"
        hint = "check the network, proxies and HF_ENDPOINT"
    else:
        message = f"an answer that makes no sense ({type(error).__name__})"
        hint = "check HF_ENDPOINT, or try again later"
    return DownloadError(f"{repo}: {endpoint}: {message}", hint=hint, **facts)


def _status(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if type(status) is int else None


def _is_transport(error: Exception) -> bool:
    """Whether the network failed: a time-out, a refused or broken connection."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # The common base of the errors of the library's HTTP package, whatever that is called.
    transport = HfHubHTTPError.__bases__[0]
    return isinstance(error, transport | OSError) and not isinstance(error, OfflineModeIsEnabled)


def _retry_after_s(error: Exception) -> float:
    """Seconds of a Retry-After header; 0 where there is none or it is a date."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    text = str(headers.get("retry-after", "")).strip()
    return float(text) if text.isdigit() and len(text) <= 6 else 0.0


def _reason(error: Exception) -> str:
    """What the system said, without its number; texts of the network in quotes."""
    said = str(error) or type(error).__name__
    system = re.fullmatch(r"\[Errno -?\d+\] ([A-Za-z ,]+)", said)
    return system[1] if system else quoted(said)
