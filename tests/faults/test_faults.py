"""Each fault a few times: no row lost, none counted twice, and the counts are exact."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from tests.availability import TRIES_ALL, give_up, whose_turn
from tests.databases import CAPABILITIES_OF, Unavailable
from tests.faults.catalogue import FAULTS
from tests.faults.fault import Stage

if TYPE_CHECKING:
    from pathlib import Path

    from tests.databases import Servers
    from tests.faults.fault import Fault


def kinds(fault: Fault) -> list[str]:
    """The databases that it is tried on here."""
    able = [kind for kind, has in CAPABILITIES_OF.items() if fault.requires <= has]
    if not fault.takes_turns or TRIES_ALL:
        return able
    return [whose_turn(fault.name, able)]


CASES = [
    pytest.param(kind, fault, number, id=f"{fault.name}-{kind}-{number}")
    for fault in FAULTS
    for kind in kinds(fault)
    for number in range(fault.in_ci)
]


@pytest.mark.parametrize(("kind", "fault", "number"), CASES)
def test_fault(kind: str, fault: Fault, number: int, servers: Servers, tmp_path: Path) -> None:
    seed = int(os.environ.get("FAULT_SEED", random.randrange(1_000_000)))
    print(f"FAULT_SEED={seed}")
    try:
        attempt = fault.attempt(Stage(kind, servers, tmp_path, random.Random(seed)))
    except Unavailable as error:
        give_up(kind, error)
    assert attempt.wrong == []
    assert attempt.rows > 0
    assert attempt.faults > 0
