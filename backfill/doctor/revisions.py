"""Looks at the files of a project: its revisions, its backfills and its env.py. Runs none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backfill.doctor import models, steps, writes
from backfill.doctor.findings import ERROR, Finding
from backfill.doctor.schema import Schema
from backfill.doctor.sources import Source

if TYPE_CHECKING:
    import ast
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from backfill.discovery import Declared

    Check = Callable[[Source, Schema], Iterator[Finding]]

CHECKS: Sequence[Check] = (
    steps.commits,
    steps.late_gates,
    steps.hasty_not_nulls,
    writes.row_loops,
    writes.batch_loops,
    writes.unbatched_writes,
    models.of_revisions,
)


@dataclass
class Files:
    """The project's files, as they can be read."""

    revisions: list[Source] = field(default_factory=list)
    backfills: list[Source] = field(default_factory=list)
    env: Source | None = None
    unreadable: list[Finding] = field(default_factory=list)

    @classmethod
    def of(cls, revisions: Iterable[Path], backfills: Iterable[Path], env: Path) -> Files:
        files = cls()
        read = [one for path in revisions if (one := files._read(path))]
        files.revisions = [one for one in read if one.revision is not None]
        files.backfills = [one for path in backfills if (one := files._read(path))]
        files.env = files._read(env)
        return files

    def _read(self, path: Path) -> Source | None:
        try:
            return Source.read(path)
        except (OSError, SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            text = f"It cannot be read: {type(error).__name__}."
            advice = "Mend the file, or take it away."
            self.unreadable.append(Finding("unreadable", ERROR, str(path), line, text, advice))
            return None

    def findings(self, history: Collection[str] = ()) -> list[Finding]:
        """Return what is wrong in the files; of revisions in `history` only what lasts."""
        schema = Schema.of(self.revisions)
        found = list(self.unreadable)
        found += self._forgotten_import()
        for source in self.revisions:
            if source.revision not in history:
                for check in CHECKS:
                    found += check(source, schema)
        for source in (*self.revisions, *self.backfills):
            found += models.of_backfills(source)
        return sorted(found, key=lambda one: (one.where, one.line or 0))

    def place(self, one: Declared) -> tuple[Source, ast.stmt] | None:
        """Return where a backfill's class stands."""
        for source in (*self.revisions, *self.backfills):
            if source.path.resolve() == one.path.resolve():
                for node in source.declarations:
                    if node.name == one.declaration.__name__:
                        return source, node
        return None

    def _forgotten_import(self) -> Iterator[Finding]:
        """Find that Alembic would see our tables, and autogenerate drop them: nothing that its
        own commands load imports us."""
        loaded = [*self.revisions, *([self.env] if self.env else [])]
        is_needed = any(source.declarations for source in self.backfills)
        if self.env is None or not is_needed or any(source.imports_us for source in loaded):
            return
        yield from self.env.tell(
            self.env.tree.body[0],
            "state-tables-visible",
            ERROR,
            "Neither env.py nor any revision imports backfill, so `alembic revision"
            " --autogenerate` would drop its tables backfill_*.",
            "Add `import backfill  # noqa: F401` to env.py.",
        )
