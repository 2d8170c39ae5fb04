"""Context: what every command is given besides its own arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from qh_chat.loading import Models
from qh_chat.offline import network_is_refused
from qh_chat.paths import Paths
from qh_chat.shelf import Shelf

if TYPE_CHECKING:
    from qh_chat.settings import Settings, Value

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """The user's paths and environment.

    Attributes:
        usage_error: prints a usage message and raises SystemExit(2).
    """

    paths: Paths
    environment: Mapping[str, str]
    usage_error: Callable[[str], NoReturn]

    def settings(self, overrides: Mapping[str, Value] | None = None) -> Settings:
        """Return the settings: command line over QH_* over file over defaults.

        Raises:
            SettingsError: an unknown key or a value out of range.
        """
        from qh_chat.settings import load_settings

        return load_settings(self.paths.places.settings, self.environment, overrides)

    def models(self, settings: Settings) -> Models:
        """Return the models that these settings can name."""
        return Models(self.paths, settings.models.folders)

    def shelf(self) -> Shelf:
        """Return what can be done with the models of the store."""
        return Shelf(self.paths, self.environment, network_is_refused())
