"""Data migrations beside Alembic revisions: batched, resumable, polite to live tables."""

from backfill import contracting as _contracting  # registers op.set_not_null with Alembic
from backfill import operations as _operations  # registers op.require_backfill with Alembic
from backfill.completion import is_complete
from backfill.declaration import Backfill, DeclarationWarning
from backfill.errors import BackfillError

__all__ = ["Backfill", "BackfillError", "DeclarationWarning", "__version__", "is_complete"]

__version__ = "0.1.0"

del _contracting, _operations
