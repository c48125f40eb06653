"""Who waits for too long is cut off, and nobody else."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from backfill.dialects.watchdog import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    client, server = socket.socketpair()
    with client, server:
        client.settimeout(5)
        yield client, server


def test_a_deadline_counts_from_the_question(pair: tuple[socket.socket, socket.socket]) -> None:
    clock = Clock()
    watch = Watch(pair[0].fileno(), 10, clock)
    assert not watch.is_late()
    watch.ask()
    clock.now += 9
    assert not watch.is_late()
    watch.ask()
    clock.now += 9
    assert not watch.is_late()
    clock.now += 2
    assert watch.is_late()
    watch.answered()
    assert not watch.is_late()


def test_a_cut_ends_the_wait_and_leaves_the_number_to_its_owner(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, server = pair
    watch = Watch(client.fileno(), 10, Clock())
    watch.cut()
    assert client.recv(1) == b""
    assert server.recv(1) == b""
    watch.cut()  # once more does no harm
    assert client.fileno() >= 0
