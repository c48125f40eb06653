"""What `flask` finds here: the application factory."""

from departures import create_app

__all__ = ["create_app"]
