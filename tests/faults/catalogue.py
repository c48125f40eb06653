"""All faults, in the order of the soak's table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults import contention, kills, lives, network, servers, split_brain

if TYPE_CHECKING:
    from tests.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *kills.FAULTS,
    *split_brain.FAULTS,
    *network.FAULTS,
    *servers.FAULTS,
    *contention.FAULTS,
    *lives.FAULTS,
)
