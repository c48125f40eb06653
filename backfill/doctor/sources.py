"""A revision or a file of backfills as a syntax tree: what is reached, what a name stands for.

Nothing is imported or run, so a file that cannot be imported any more is read all the same.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfill.doctor.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    Function = ast.FunctionDef | ast.AsyncFunctionDef
    Values = dict[str, list[tuple[int, list[ast.expr]]]]
    """Name to lines, and what it is from there on: one of these expressions."""

_ACCEPTED = re.compile(r"#\s*backfill:\s*ok\b", re.IGNORECASE)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEEPEST = 6
"""How many names one after the other are looked up."""
_PASSED_THROUGH = {"text", "DDL", "dedent", "cleandoc"}
_KEPT = {"strip", "lstrip", "rstrip", "bindparams", "columns", "execution_options", "format"}


@dataclass(eq=False)
class Source:
    """A file of Python, as far as it can be told without running it."""

    path: Path
    text: str
    _reached: dict[str, list[Any]] = field(default_factory=dict)
    _values: dict[ast.AST, Values] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Source:
        """Raises OSError, SyntaxError or ValueError for what is no Python."""
        source = cls(path, path.read_text(encoding="utf-8"))
        try:
            _ = source.tree
        except RecursionError as error:
            raise ValueError("an expression is nested too deeply") from error
        return source

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def shown(self) -> str:
        """The path as a person would type it here."""
        path, here = self.path.resolve(), Path.cwd()
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

    @cached_property
    def revision(self) -> str | None:
        """The identifier of a revision file."""
        return next(iter(self.names("revision")), None)

    def names(self, variable: str) -> list[str]:
        """Return the texts that a revision assigns to `down_revision` and its like."""
        found = []
        for value in self._assigned(self.tree, variable):
            items = _items(value) or [value]
            found += [text for one in items if (text := constant(one)) is not None]
        return found

    @property
    def imports(self) -> Iterator[tuple[ast.Import | ast.ImportFrom, str, str]]:
        """Each import: its node, the dotted name that it leads to, and what it is called here."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    yield node, alias.name, name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                for alias in node.names:
                    yield node, f"{node.module}.{alias.name}", alias.asname or alias.name

    @property
    def imports_us(self) -> bool:
        return any(dotted.partition(".")[0] == "backfill" for _, dotted, _ in self.imports)

    @cached_property
    def declarations(self) -> list[ast.ClassDef]:
        """The backfills that stand in the file."""
        ours = {name for _, dotted, name in self.imports if dotted.endswith("backfill.Backfill")}
        known = {*ours, "backfill.Backfill"} if self.imports_us else set()
        found = []
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef) and known & {ast.unparse(b) for b in node.bases}:
                found.append(node)
                known.add(node.name)
        return found

    @property
    def heading(self) -> ast.stmt | None:
        """The statement of a revision that says which one it is."""
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", 0)]
            if any(isinstance(t, ast.Name) and t.id == "revision" for t in targets):
                return node
        return None

    # -- findings ----------------------------------------------------------------------------

    def tell(
        self,
        node: ast.stmt | ast.expr,
        code: str,
        severity: str,
        message: str,
        advice: str,
        offer: str | None = None,
    ) -> Iterator[Finding]:
        """Give the finding, unless `# backfill: ok` stands there."""
        if not self.is_accepted(node):
            yield Finding(code, severity, self.shown, node.lineno, message, advice, offer)

    def is_accepted(self, node: ast.stmt | ast.expr) -> bool:
        """Whether a comment on the statement's lines, or above them, says that it is deliberate."""
        statement = self._statement(node)
        body = getattr(statement, "body", None)
        end = body[0].lineno - 1 if isinstance(body, list) else statement.end_lineno
        first = min([statement.lineno, *(d.lineno for d in _decorators(statement))])
        lines = range(first, max(end or 0, statement.lineno) + 1)
        return not self._accepted.isdisjoint(lines) or first - 1 in self._accepted_alone

    @cached_property
    def _comments(self) -> list[tokenize.TokenInfo]:
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return [t for t in tokens if t.type == tokenize.COMMENT and _ACCEPTED.match(t.string)]

    @cached_property
    def _accepted(self) -> set[int]:
        return {token.start[0] for token in self._comments}

    @cached_property
    def _accepted_alone(self) -> set[int]:
        return {t.start[0] for t in self._comments if t.line.lstrip().startswith("#")}

    def _statement(self, node: ast.AST) -> ast.stmt:
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        return {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """Give what a node stands in, the innermost first, up to its function."""
        while node in self.parents:
            node = self.parents[node]
            yield node
            if isinstance(node, _FUNCTIONS):
                return

    # -- what is reached ---------------------------------------------------------------------

    @cached_property
    def _functions(self) -> dict[str, Function]:
        return {node.name: node for node in ast.walk(self.tree) if isinstance(node, _FUNCTIONS)}

    def reached(self, root: str) -> list[Any]:
        """Return the nodes of a function and of all that it uses, in the order of the file.

        The template for several databases calls `upgrade_NAME` by a name that it computes.
        """
        if root not in self._reached:
            function = self._functions.get(root)
            self._reached[root] = [] if function is None else self.used(function, root=root)
        return self._reached[root]

    def used(self, node: ast.AST, *, root: str | None = None) -> list[Any]:
        """Return the nodes in one and in the functions that it uses, in the order of the file."""
        waiting, found = [node], []
        seen: set[str] = set()
        while waiting:
            nodes = list(_own_nodes(waiting.pop()))
            found += [one for one in nodes if hasattr(one, "lineno")]
            names = {one.id for one in nodes if isinstance(one, ast.Name)}
            if root and "globals" in names:
                names |= {name for name in self._functions if name.startswith(f"{root}_")}
            new = names & self._functions.keys() - seen
            waiting += [self._functions[name] for name in sorted(new)]
            seen |= new
        return sorted(found, key=lambda one: (one.lineno, one.col_offset))

    def calls(self, root: str) -> list[ast.Call]:
        """Return the calls in what is reached from a function."""
        return [node for node in self.reached(root) if isinstance(node, ast.Call)]

    def ways(self, root: str) -> list[list[ast.Call]]:
        """Return the calls in what is reached from a function, one list for each database that the
        template for several may go to: it calls one `upgrade_NAME` at a time."""
        function = self._functions.get(root)
        own = [] if function is None else self.used(function)
        computes = any(isinstance(one, ast.Name) and one.id == "globals" for one in own)
        names = [name for name in self._functions if computes and name.startswith(f"{root}_")]
        ways = [own + self.reached(name) for name in names] or [own]
        return [[node for node in way if isinstance(node, ast.Call)] for way in ways]

    @cached_property
    def _names_of_op(self) -> set[str]:
        return {n for _, dotted, n in self.imports if dotted == "alembic.op"} | {"op", "alembic.op"}

    def operation(self, call: ast.Call) -> str | None:
        """Return the name of the operation that a call is: of `op`, or of a batch of its own."""
        function = call.func
        if not isinstance(function, ast.Attribute):
            return None
        if ast.unparse(function.value) in self._names_of_op or self._batch(function.value):
            return function.attr
        return None

    def table_of(self, call: ast.Call) -> str | None:
        """Return the table that an operation is about."""
        assert isinstance(call.func, ast.Attribute)
        batch = self._batch(call.func.value)
        given = batch or call
        name = argument(given, 0, "table_name")
        return constant(name)

    def arguments_of(self, call: ast.Call) -> list[ast.expr]:
        """Return an operation's arguments behind the table, which a batch has already."""
        assert isinstance(call.func, ast.Attribute)
        return call.args if self._batch(call.func.value) else call.args[1:]

    def _batch(self, receiver: ast.expr) -> ast.Call | None:
        """Return the `op.batch_alter_table(…)` that a name stands for."""
        if not isinstance(receiver, ast.Name):
            return None
        for node in self.above(receiver):
            for item in getattr(node, "items", ()) if isinstance(node, ast.With) else ():
                is_it = isinstance(item.optional_vars, ast.Name)
                if is_it and item.optional_vars.id == receiver.id:
                    call = item.context_expr
                    if isinstance(call, ast.Call) and last_name(call.func) == "batch_alter_table":
                        return call
        return None

    # -- what a name stands for --------------------------------------------------------------

    def resolved(self, node: ast.expr, depth: int = 0) -> list[ast.expr]:
        """Return the expressions that a name may stand for; any other expression is itself."""
        if not isinstance(node, ast.Name) or depth > _DEEPEST:
            return [node]
        functions = list(self._scopes(node))
        for scope in [*functions, self.tree]:
            is_run_before = isinstance(scope, ast.Module) and functions
            found = self._assigned(scope, node.id, None if is_run_before else node.lineno)
            if found:
                return [one for value in found for one in self.resolved(value, depth + 1)]
        return [node]

    def _scopes(self, node: ast.AST) -> Iterator[ast.AST]:
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, _FUNCTIONS):
                yield node

    def _assigned(self, scope: ast.AST, name: str, before: int | None = None) -> list[ast.expr]:
        """Return what a name is in a scope: its last value before a line, or each of a loop's."""
        if scope not in self._values:
            self._values[scope] = _values_in(scope)
        found = self._values[scope].get(name, [])
        earlier = [one for one in found if before is None or one[0] < before]
        return earlier[-1][1] if earlier else []

    def texts(self, node: ast.expr, depth: int = 0) -> list[str]:
        """Return the texts that an expression may be; what is not known in it stands in braces."""
        if depth > _DEEPEST:
            return []
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else []
        if isinstance(node, ast.JoinedStr):
            return self._joined(node, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            rights = self.texts(node.right, depth + 1) or [f"{{{ast.unparse(node.right)}}}"]
            return [a + b for a in self.texts(node.left, depth + 1) for b in rights]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            return self.texts(node.left, depth + 1)
        if isinstance(node, ast.Call):
            return self._called(node, depth)
        return [
            text
            for one in self.resolved(node)
            if one is not node
            for text in self.texts(one, depth + 1)
        ]

    def _called(self, node: ast.Call, depth: int) -> list[str]:
        if last_name(node.func) in _PASSED_THROUGH and node.args:
            return self.texts(node.args[0], depth + 1)
        if isinstance(node.func, ast.Attribute) and node.func.attr in _KEPT:
            return self.texts(node.func.value, depth + 1)
        return []

    def _joined(self, node: ast.JoinedStr, depth: int) -> list[str]:
        texts = [""]
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                known = self.texts(part.value, depth + 1)
                texts = [t + k for t in texts for k in known or [f"{{{ast.unparse(part.value)}}}"]]
            else:
                texts = [t + str(constant(part)) for t in texts]
        return texts


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Give the nodes of a function or module, in their order, without those of inner ones."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
            yield from _own_nodes(child)


def _values_in(scope: ast.AST) -> Values:
    """Return what each name of a scope is, line by line."""
    found: Values = {}

    def note(target: ast.expr | None, line: int, values: list[ast.expr]) -> None:
        if isinstance(target, ast.Name):
            found.setdefault(target.id, []).append((line, values))

    for node in _own_nodes(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                note(target, node.lineno, [node.value])
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            note(node.target, node.lineno, [node.value] if node.value else [])
        elif isinstance(node, ast.For):
            note(node.target, node.lineno, _items(node.iter))
        elif isinstance(node, ast.With):
            for item in node.items:
                note(item.optional_vars, node.lineno, [item.context_expr])
    return found


def _decorators(statement: ast.stmt) -> list[ast.expr]:
    return getattr(statement, "decorator_list", [])


def _items(node: ast.expr) -> list[ast.expr]:
    """Return the members of a literal list, tuple or set."""
    return list(node.elts) if isinstance(node, (ast.List, ast.Tuple, ast.Set)) else []


def last_name(node: ast.expr) -> str:
    """Return the last part of a dotted name: `update` of `sa.update`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def argument(call: ast.Call, place: int, name: str) -> ast.expr | None:
    """Return an argument that is given by its place or by its name."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    return call.args[place] if place < len(call.args) else named.get(name)


def constant(node: ast.AST | None) -> str | None:
    """Return the text that a literal is."""
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value if is_text else None  # type: ignore[union-attr]
