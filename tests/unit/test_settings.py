"""Settings: layers, names, values, and where a wrong one came from."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pytest

from backfill import kinds
from backfill.errors import ConfigurationError
from backfill.settings import (
    IN_FLIGHT,
    NAMES,
    Settings,
    changes,
    config_path,
    from_environment,
    from_pyproject,
    resolve,
)

if TYPE_CHECKING:
    from pathlib import Path

    from backfill.kinds import Kind

LAYERS = ("pyproject.toml", "alembic.ini", "The environment", "FillNames", "The command line")


def test_defaults() -> None:
    assert resolve() == Settings()


@pytest.mark.parametrize("given", range(len(LAYERS)))
def test_last_layer_that_says_something_wins(given: int) -> None:
    layers = [(origin, {"workers": i + 2} if i <= given else {}) for i, origin in enumerate(LAYERS)]
    assert resolve(*layers).workers == given + 2


def test_layers_add_up() -> None:
    found = resolve(("a", {"workers": 2}), ("b", {"lock_timeout": 0.5}), ("c", {"chunk_size": 10}))
    assert found == replace(Settings(), workers=2, lock_timeout=0.5, chunk_size=10)


AS_TEXT: dict[Kind, tuple[str, Any]] = {
    kinds.WHOLE: ("7", 7),
    kinds.COUNT: ("7", 7),
    kinds.SECONDS: ("7", 7.0),
    kinds.PATIENCE: ("7", 7.0),
    kinds.RATE: ("7", 7.0),
    kinds.RATIO: ("7", 7.0),
    kinds.SWITCH: ("yes", True),
    kinds.GATE: (" Inline ", "inline"),
    kinds.TEXT: (" a flag ", "a flag"),
    kinds.TEXTS: ("\n SELECT 1, 2\n/tmp/flag \n", ("SELECT 1, 2", "/tmp/flag")),
    kinds.WINDOW: ("22:00-06:00", "22:00-06:00"),
}


def as_text(name: str) -> tuple[str, Any]:
    (kind,) = (one.metadata["kind"] for one in fields(Settings) if one.name == name)
    return AS_TEXT[kind]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_setting_can_be_set_as_text(name: str) -> None:
    text, meant = as_text(name)
    value = getattr(resolve(("The environment", {name: text})), name)
    assert (value, type(value)) == (meant, type(meant))


@pytest.mark.parametrize("kind", list(AS_TEXT))
def test_a_value_may_also_be_what_the_text_means(kind: Kind) -> None:
    text, meant = AS_TEXT[kind]
    assert kind.parse(meant) == kind.parse(text) == meant


TAKEN_BACK = {one.name for one in fields(Settings) if one.default is None}


@pytest.mark.parametrize("name", sorted(TAKEN_BACK))
def test_what_follows_the_database_can_be_taken_back(name: str) -> None:
    assert getattr(resolve(("a", {name: as_text(name)[0]}), ("b", {name: None})), name) is None


@pytest.mark.parametrize("name", sorted(NAMES - TAKEN_BACK))
def test_nothing_else_can_be_none(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        resolve(("FillNames", {name: None}))


@pytest.mark.parametrize("name", ["chunk_sise", "", "CHUNK_SIZE", "__class__"])
def test_unknown_name_is_told_with_its_origin(name: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        resolve(("alembic.ini", {name: 1}))
    text = str(refused.value)
    assert text.startswith(f"alembic.ini has an unknown setting {name!r}")
    assert all(known in text for known in NAMES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", "many"),
        ("workers", ""),
        ("workers", 0),
        ("workers", "-1"),
        ("workers", 2.7),
        ("workers", "2.7"),
        ("workers", True),
        ("workers", [1]),
        ("chunk_size", 0),
        ("chunk_size", False),
        ("chunk_size", "2147483648"),
        ("max_failures", -1),
        ("target_seconds", 0),
        ("target_seconds", "soon"),
        ("target_seconds", "5s"),
        ("target_seconds", float("nan")),
        ("target_seconds", "nan"),
        ("statement_timeout", "inf"),
        ("statement_timeout", float("inf")),
        pytest.param("statement_timeout", 10**400, id="huge"),
        ("lock_timeout", -0.1),
        ("idle_timeout", {}),
        ("nice", -1),
        ("nice", "very"),
        ("rows_per_second", 0),
        ("window", ""),
        ("window", 22),
        ("window", ["22:00-06:00"]),
    ],
)
def test_impossible_value_is_told_with_its_origin(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        resolve(("The environment", {name: value}))
    assert str(refused.value).startswith(f"The environment sets {name} to {value!r}")


@pytest.mark.parametrize(
    ("name", "value"), [("max_failures", 0), ("lock_timeout", "0"), ("nice", "0")]
)
def test_zero_where_it_means_something(name: str, value: Any) -> None:
    assert getattr(resolve(("a", {name: value})), name) == 0


def test_message_does_not_forbid_a_zero_that_is_allowed() -> None:
    with pytest.raises(ConfigurationError) as refused:
        resolve(("a", {"max_failures": -1}))
    assert "above 0" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("22-6", 'two times of the day and a zone, like "22:00-06:00 Europe/Berlin"'),
        ("22:00-25:00", "no time 25:00"),
        ("22:00-22:00", "leave it out"),
        ("22:00-06:00 Europe/Berlni", 'no time zone is called "Europe/Berlni"'),
    ],
)
def test_wrong_window_is_told_what_is_wrong(value: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        resolve(("alembic.ini", {"window": value}))
    assert told in str(refused.value)


@pytest.mark.parametrize("wrong", ["maybe", 2, None, []])
def test_a_switch_is_on_or_off(wrong: Any) -> None:
    assert [kinds.SWITCH.parse(text) for text in ("on", "No", "1", False)] == [1, 0, 1, 0]
    with pytest.raises(ValueError):
        kinds.SWITCH.parse(wrong)


@pytest.mark.parametrize("wrong", [5, None, ["a", 5], ["a", ""]])
def test_a_list_has_texts_only(wrong: Any) -> None:
    with pytest.raises(ValueError):
        kinds.TEXTS.parse(wrong)


# -- changing a run that lasts ---------------------------------------------------------------


def test_changes_are_values_and_what_is_empty_is_taken_back() -> None:
    given = {"nice": "2", "window": "22:00-06:00 Europe/Berlin", "chunk_size": " "}
    meant = {"nice": 2.0, "window": "22:00-06:00 Europe/Berlin", "chunk_size": None}
    assert changes(given) == meant


@pytest.mark.parametrize("name", sorted(NAMES - IN_FLIGHT))
def test_what_cannot_be_changed_in_flight_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} cannot be changed while a run lasts"):
        changes({"nice": "1", name: "7"})


@pytest.mark.parametrize("given", [{"nise": "1"}, {"nice": "much"}, {"window": "always"}])
def test_changes_are_checked_like_any_layer(given: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="The command line"):
        changes(given)


def test_no_password_is_recorded_or_told() -> None:
    url = "https://me:secret@host/health"
    assert kinds.masked(f"{url} and https://host:8080/a@b") == (
        "https://me:***@host/health and https://host:8080/a@b"
    )
    with pytest.raises(ConfigurationError) as refused:
        resolve(("alembic.ini", {"window": url}))
    assert "secret" not in str(refused.value)
    for name in ("throttle_url", "throttle_query", "probe_query", "replicas"):
        given = resolve(("alembic.ini", {name: f"{url}?token=secret"}))
        assert "secret" not in str(given.recorded()), name


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFILL_CHUNK_SIZE", "250")
    monkeypatch.setenv("BACKFILL_LOCK_TIMEOUT", "0.1")
    monkeypatch.setenv("BACKFILL_TEST_PASSWORD", "none of ours")
    assert from_environment() == {"chunk_size": "250", "lock_timeout": "0.1"}
    assert resolve(("The environment", from_environment())).chunk_size == 250


def test_environment_is_empty_by_default() -> None:
    assert from_environment() == {}


def test_environment_names_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALEMBIC_CONFIG", raising=False)
    assert config_path() is None
    monkeypatch.setenv("ALEMBIC_CONFIG", "deploy/alembic.ini")
    assert config_path() == "deploy/alembic.ini"


def write(directory: Path, text: str) -> Path:
    path = directory / "pyproject.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_pyproject(tmp_path: Path) -> None:
    path = write(tmp_path, "[tool.backfill]\nchunk_size = 100\ntarget_seconds = 0.2\n")
    assert from_pyproject(path) == {"chunk_size": 100, "target_seconds": 0.2}


@pytest.mark.parametrize("text", ["", "[project]\nname = 'x'\n", "[tool.ruff]\n"])
def test_pyproject_without_our_table(tmp_path: Path, text: str) -> None:
    assert from_pyproject(write(tmp_path, text)) == {}


def test_no_pyproject(tmp_path: Path) -> None:
    assert from_pyproject(tmp_path / "pyproject.toml") == {}


@pytest.mark.parametrize("text", ["[tool", "[tool]\nbackfill = 5\n", "tool = 5\n"])
def test_broken_pyproject_is_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml"):
        from_pyproject(path)


def test_pyproject_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_bytes("# für\n".encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml"):
        from_pyproject(path)
