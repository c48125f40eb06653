"""Bad rows: what may be said of an error without saying a row's values."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from backfill.errors import CommitUnknown, RowsTooSlow, TableBusy

if TYPE_CHECKING:
    from backfill.dialects import Dialect


def describe(error: BaseException, dialect: Dialect) -> str:
    """Return one line on an error: kind, code and names of the database's, or class and place
    of Python's. Its own text is left out, since it often carries values."""
    if isinstance(error, (TableBusy, CommitUnknown, RowsTooSlow)):
        return str(error)
    if isinstance(error, DBAPIError):
        names = dialect.error_objects(error)
        kind = f"{dialect.error_kind(error).value} ({dialect.error_code(error)})"
        refusal = dialect.refusal(error)
        parts = [kind, *(f"{what} {name}" for what, name in names.items())]
        return ", ".join(parts) + (f": {refusal}" if refusal else "")
    return f"{type(error).__name__} {_place(error)}".rstrip()


def stack(error: BaseException) -> str:
    """Return the traceback without the error's text."""
    frames = traceback.format_tb(error.__traceback__)
    return "".join([*frames, type(error).__name__])


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    return f"at {Path(last.filename).name}:{last.lineno} in {last.name}"
