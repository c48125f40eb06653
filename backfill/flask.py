"""`flask backfill …`: the same commands, in the context of the application."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

from click import Context, pass_context
from flask.cli import ScriptInfo, with_appcontext

from backfill.cli import cli


@pass_context
@with_appcontext
def _in_application(click_context: Context, /, **options: Any) -> None:
    script = click_context.ensure_object(ScriptInfo)
    assert cli.callback is not None
    cli.callback(**options)
    call = click_context.obj
    call.origin = replace(call.origin, app=script.app_import_path)


command = copy(cli)
command.callback = _in_application
