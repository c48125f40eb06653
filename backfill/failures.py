"""Bad rows: what may be said of an error without saying a row's values."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from backfill.errors import CommitUnknown, RowLeftOut, RowsTooSlow, TableBusy

if TYPE_CHECKING:
    from backfill.dialects import Dialect


_PATHS = sysconfig.get_paths()
_NOT_THE_USERS = (
    f"{Path(__file__).parent}{os.sep}",
    *(f"{_PATHS[name]}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    "<",  # what was compiled from a text
)
"""Where a frame's file is when it is ours, Python's or a library's."""


def describe(error: BaseException, dialect: Dialect) -> str:
    """Return one line on an error: kind, code and names of the database's, or class and place
    of Python's. Its own text is left out, since it often carries values."""
    if isinstance(error, (TableBusy, CommitUnknown, RowLeftOut, RowsTooSlow)):
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
    """Return where it was raised: in the user's own code, where that had a part in it."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    last = (own or frames)[-1]
    return f"at {Path(last.filename).name}:{last.lineno} in {last.name}"
