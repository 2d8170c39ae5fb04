"""Errors of the runtime layer; all derive from `QhError`, so the app catches exactly one type."""

from __future__ import annotations

from qh_kernels.errors import KernelError, QhError

__all__ = [
    "CheckpointError",
    "ContextLengthError",
    "DoesNotFitError",
    "DownloadError",
    "FormatError",
    "HardwareError",
    "IntegrityError",
    "KernelError",
    "ModelNotFoundError",
    "PlanError",
    "QhError",
    "SessionError",
    "StoreError",
    "TemplateError",
    "TokenizerError",
    "TruncatedCheckpointError",
    "UnsupportedArchitectureError",
    "UnsupportedTensorError",
]


class HardwareError(QhError):
    """A fact about this machine could not be read and is needed."""


class PlanError(QhError):
    """The plan cannot be made from what was given (a bad context length, an unknown format)."""


class DoesNotFitError(PlanError):
    """The plan needs more memory than there is. Facts: required_bytes, available_bytes, plan."""


class StoreError(QhError):
    """The model store or a derived file in it cannot be used."""


class ModelNotFoundError(StoreError):
    """No model has this name. Facts: name, known."""


class DownloadError(StoreError):
    """A file could not be fetched; what arrived is kept. Facts: file, url (no query), status."""


class IntegrityError(StoreError):
    """A file in the store is not what its manifest says. Facts: path, expected, found."""


class CheckpointError(QhError):
    """A checkpoint breaks a rule. Facts: path, and tensor or field where one is to blame."""


class TruncatedCheckpointError(CheckpointError):
    """A file is shorter than its header says. Facts: path, expected_bytes, found_bytes."""


class UnsupportedTensorError(CheckpointError):
    """A tensor has a type or layout that is not read. Facts: tensor, dtype."""


class UnsupportedArchitectureError(CheckpointError):
    """The model type, or a config key that changes the mathematics, is not supported."""


class FormatError(QhError):
    """Packed bytes do not follow their weight format. Facts: format, expected, found."""


class TokenizerError(QhError):
    """The tokenizer files are missing, malformed, or failed on a text."""


class TemplateError(QhError):
    """The chat template failed, ran out of its budget or refused the messages."""


class SessionError(QhError):
    """A conversation cannot go on as asked."""


class ContextLengthError(SessionError):
    """The prompt alone does not fit. Facts: prompt_tokens, context_length."""
