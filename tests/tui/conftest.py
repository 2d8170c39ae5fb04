"""A hub of our own for the screens."""

from tests.support.hub_fixtures import hub, hub_server

__all__ = ["hub", "hub_server"]
