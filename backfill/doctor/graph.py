"""Traps in how revisions follow one another: several heads, gates that can never be passed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill.doctor.findings import ERROR
from backfill.doctor.sources import argument, constant
from backfill.doctor.steps import GATE

if TYPE_CHECKING:
    import ast
    from collections.abc import Iterator, Mapping, Sequence

    from backfill.doctor.findings import Finding
    from backfill.doctor.sources import Source


class Graph:
    """The revisions by their identifiers, as the files say it."""

    def __init__(self, revisions: Sequence[Source]) -> None:
        self.sources = {str(source.revision): source for source in revisions}

    def heads(self) -> list[Source]:
        """Return the revisions that no other one follows, in the order of their files."""
        followed = {name for s in self.sources.values() for name in s.names("down_revision")}
        return [source for name, source in self.sources.items() if name not in followed]

    def before(self, source: Source) -> set[str] | None:
        """Return all that comes before a revision; None where a file does not say it plainly."""
        waiting, found = [source], set[str]()
        while waiting:
            one = waiting.pop()
            names = {*one.names("down_revision"), *one.names("depends_on")}
            if not names <= self.sources.keys():
                return None
            waiting += [self.sources[name] for name in names - found]
            found |= names
        return found

    def is_labelled(self, head: Source) -> bool:
        """Whether a revision belongs to a branch that has a name, so that it is meant to be one."""
        before = self.before(head) or set()
        line = [head, *(self.sources[name] for name in before)]
        return any(source.names("branch_labels") for source in line)


def several_heads(revisions: Sequence[Source]) -> Iterator[Finding]:
    """Find a graph with several ends, for which `alembic upgrade head` refuses."""
    graph = Graph(revisions)
    heads = graph.heads()
    unnamed = [head for head in heads if not graph.is_labelled(head)]
    if len(heads) < 2 or not unnamed:
        return
    names = ", ".join(str(head.revision) for head in heads)
    for node in (statement for head in unnamed[:1] if (statement := head.heading)):
        yield from unnamed[0].tell(
            node,
            "several-heads",
            ERROR,
            f"There are {len(heads)} heads ({names}), so `alembic upgrade head` refuses.",
            "`alembic merge heads` joins them; branches that are meant to stay get branch_labels.",
        )


def hopeless_gates(
    revisions: Sequence[Source], history: frozenset[str], declared: Mapping[str, str]
) -> Iterator[Finding]:
    """Find gates for a backfill that is not there, or that may run only after the gate.

    `declared` has the name of each backfill, and its revision.
    """
    graph = Graph(revisions)
    for source in revisions:
        before = graph.before(source)
        for call, name in _gates(source):
            revision = declared.get(name)
            if source.revision in history:
                continue
            if revision is None:
                yield from source.tell(
                    call,
                    "gate-unknown",
                    ERROR,
                    f"The gate waits for {name!r}, and no backfill is called so.",
                    "Take a name that `backfill list` shows.",
                )
            elif before is not None and revision not in before:
                yield from source.tell(
                    call,
                    "gate-too-early",
                    ERROR,
                    f"{name!r} may run only after revision {revision}, which does not come before"
                    " this gate: neither can ever go on.",
                    "Move the gate to a revision of its own, after the backfill's.",
                )


def _gates(source: Source) -> Iterator[tuple[ast.Call, str]]:
    for call in source.calls("upgrade"):
        name = constant(argument(call, 0, "name"))
        if source.operation(call) == GATE and name is not None:
            yield call, name
