"""For the tests of a project's own backfills; `pytest_backfill` makes a fixture of it."""

from backfill.testing.case import Case, new_case

__all__ = ["Case", "new_case"]
