"""Writes the table of settings from the code, where a page says <!-- settings -->."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from backfill import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = "<!-- settings -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the source of each page."""
    return markdown.replace(MARK, "\n\n".join(sections()))


def sections() -> Iterator[str]:
    """Give a heading, the default and the description of each setting."""
    said = docstrings()
    for one in dataclasses.fields(settings.Settings):
        default = "none" if one.default is None else f"`{shown(one.default)}`"
        is_limit = one.name in settings.WATCHED
        signal = " The limit of a signal; 0 switches it off." if is_limit else ""
        changed = ", `backfill set` while it runs" if one.name in settings.IN_FLIGHT else ""
        yield (
            f"### `{one.name}`\n\n{said[one.name]}{signal}\n\n"
            f"Default: {default}. Also `BACKFILL_{one.name.upper()}`{changed}."
        )


def shown(default: Any) -> str:
    """Return a default as one writes it in TOML."""
    if isinstance(default, bool):
        return str(default).lower()
    return "[]" if default == () else f"{default:g}" if isinstance(default, float) else str(default)


def docstrings() -> dict[str, str]:
    """Return the text below each field of Settings, which Python itself does not keep."""
    (made,) = ast.parse(inspect.getsource(settings.Settings)).body
    assert isinstance(made, ast.ClassDef)
    found = {}
    for field, text in zip(made.body, made.body[1:], strict=False):
        is_described = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_described:
            found[field.target.id] = inspect.cleandoc(text.value.value)
    return found
