"""A TCP proxy between a runner and its server, which does what networks do.

It reads what the client says just far enough to see the COMMIT of a chunk; the server speaks when
it is asked, so what it sends next is the answer. A trick decides what becomes of both.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

from tests.databases import START_SECONDS, free_port

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from types import TracebackType

T = TypeVar("T")

READ_BYTES = 65_536
DRIP_BYTES = 64
"""What a slow network passes on at a time."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset, and nothing that is still in the buffers."""

WRITTEN = (b"UPDATE", b"counters")
"""The words of a statement that writes a chunk of the oracle's table."""


# -- what the client says ----------------------------------------------------------------------


class PostgreSQLSpeech:
    """Type (but for the first messages, whose length begins with 0), length, body."""

    def __init__(self) -> None:
        self._prepared: dict[bytes, bytes] = {}

    def split(self, buffer: bytearray) -> Iterator[bytes]:
        """Take the complete messages out of the buffer."""
        while len(buffer) >= 5:
            start = 1 if buffer[0] else 0
            length = start + int.from_bytes(buffer[start : start + 4], "big")
            if len(buffer) < length:
                return
            yield bytes(buffer[:length])
            del buffer[:length]

    def statement(self, message: bytes) -> bytes:
        """The SQL that a message has the server execute; empty if it has none."""
        kind, body = message[:1], message[5:]
        if kind == b"P":  # Parse: the statement's name, its text
            name, text, *_ = body.split(b"\0")
            self._prepared[name] = text
        if kind == b"B":  # Bind: the portal's name, the statement's
            return self._prepared.get(body.split(b"\0")[1], b"")
        return body.rstrip(b"\0") if kind == b"Q" else b""


class MariaDBSpeech:
    """Length, number of the packet in its exchange, body; 3 is COM_QUERY."""

    def split(self, buffer: bytearray) -> Iterator[bytes]:
        while len(buffer) >= 4:
            length = 4 + int.from_bytes(buffer[:3], "little")
            if len(buffer) < length:
                return
            yield bytes(buffer[:length])
            del buffer[:length]

    def statement(self, message: bytes) -> bytes:
        return message[5:] if message[3:5] == b"\x00\x03" else b""


SPEECHES: dict[str, type[PostgreSQLSpeech | MariaDBSpeech]] = {
    "postgresql": PostgreSQLSpeech,
    "mariadb": MariaDBSpeech,
}


# -- one connection through the proxy ----------------------------------------------------------


@dataclass(eq=False)
class Link:
    """A client's connection, and ours to the server for it."""

    from_client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    from_server: asyncio.StreamReader
    to_server: asyncio.StreamWriter
    speech: PostgreSQLSpeech | MariaDBSpeech
    is_deaf: bool = False
    """What the server says does not reach the client."""
    is_mute: bool = False
    """What the client says does not reach the server, not even that it has gone."""
    has_written: bool = False
    """Its transaction has written a chunk."""
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server says something, or goes."""

    async def ask(self, message: bytes) -> None:
        """Send a message to the server, and wait for its answer."""
        self.heard.clear()
        self.to_server.write(message)
        await self.heard.wait()

    def is_commit_of_chunk(self, message: bytes) -> bool:
        """Follow the client's transactions: whether this one ends what wrote a chunk."""
        statement = self.speech.statement(message)
        if all(word in statement for word in WRITTEN):
            self.has_written = True
        elif statement[:6].upper() in (b"COMMIT", b"ROLLBA"):
            had_written, self.has_written = self.has_written, False
            return had_written and statement[:6].upper() == b"COMMIT"
        return False

    def reset(self) -> None:
        """Cut both sides at once."""
        reset(self.to_client)
        reset(self.to_server)


def reset(writer: asyncio.StreamWriter) -> None:
    found: socket.socket = writer.get_extra_info("socket")
    if not writer.transport.is_closing():
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()


# -- tricks: what becomes of a chunk's COMMIT ----------------------------------------------------

Trick = Callable[[Link, bytes], Awaitable[None]]


async def cut_before(link: Link, commit: bytes) -> None:
    """The COMMIT never arrives."""
    link.reset()


async def cut_during(link: Link, commit: bytes) -> None:
    """Half of it does."""
    link.to_server.write(commit[: len(commit) // 2])
    await link.to_server.drain()
    link.reset()


async def cut_after(link: Link, commit: bytes) -> None:
    """It is done, and the answer never arrives."""
    link.is_deaf = True
    await link.ask(commit)
    link.reset()


async def deliver_late(link: Link, commit: bytes) -> None:
    """The client is cut off; its COMMIT arrives when it has long connected again."""
    reset(link.to_client)
    link.is_deaf = True
    await asyncio.sleep(0.3)
    await link.ask(commit)
    link.reset()


async def swallow_answer(link: Link, commit: bytes) -> None:
    """It is done, and the answer never arrives, though the connection stands."""
    link.is_deaf = True
    await link.ask(commit)


async def fall_silent(link: Link, commit: bytes) -> None:
    """Nothing passes any more in either direction, though both connections stand."""
    link.is_deaf = link.is_mute = True


async def lose_server(link: Link, commit: bytes) -> None:
    """The server has gone, and the client is not told."""
    link.is_deaf = link.is_mute = True
    reset(link.to_server)


async def lose_client(link: Link, commit: bytes) -> None:
    """The client has gone, and the server is not told: its transaction stays open."""
    link.is_mute = True
    reset(link.to_client)


# -- the proxy ---------------------------------------------------------------------------------


class Proxy:
    """Listens on a port of its own as long as its block lasts; its methods are for other threads.

    What it does, it does in one thread with an event loop.
    """

    def __init__(self, kind: str, target: int) -> None:
        self.port = free_port()
        self.target = target
        """The port of the server; connections that are made later go to where it says then."""
        self.bytes_per_second: float | None = None
        self._speech = SPEECHES[kind]
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="proxy")
        self._tricks: deque[tuple[Trick, Event]] = deque()
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._bytes_left: int | None = None
        self._happened = Event()

    def __enter__(self) -> Proxy:
        self._thread.start()
        self.accept()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refuse()
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, url: str) -> str:
        """The URL of the server, through the proxy."""
        return sa.make_url(url).set(port=self.port).render_as_string(hide_password=False)

    def at_next_chunk(self, trick: Trick) -> Event:
        """Play a trick on the next chunk's COMMIT; the event is set when that is done."""
        done = Event()
        self._loop.call_soon_threadsafe(self._tricks.append, (trick, done))
        return done

    def cut_after_bytes(self, count: int) -> Event:
        """Cut the connection that is the first to pass on, in either direction, this byte."""
        done = Event()

        def note() -> None:
            self._bytes_left, self._happened = count, done

        self._loop.call_soon_threadsafe(note)
        return done

    def cut_all(self) -> None:
        """Cut all connections; new ones are accepted."""
        self._do(self._cut_all())

    def fall_silent(self) -> None:
        """Let all connections stand, and pass on nothing more in either direction."""
        self._do(self._fall_silent())

    def refuse(self) -> None:
        """Cut all connections, and refuse new ones."""
        self._do(self._refuse())

    def accept(self) -> None:
        """Accept new ones, again."""
        self._do(self._listen())

    def _do(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    # -- in its own thread -----------------------------------------------------------------

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._cut_all()

    async def _cut_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _fall_silent(self) -> None:
        for link in self._links:
            link.is_deaf = link.is_mute = True

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            reset(writer)
            return
        link = Link(reader, writer, *server, self._speech())
        self._links.add(link)
        try:
            await asyncio.gather(self._up(link), self._down(link))
        finally:
            link.reset()
            self._links.discard(link)

    async def _up(self, link: Link) -> None:
        buffer = bytearray()
        with contextlib.suppress(ConnectionError):
            while data := await link.from_client.read(READ_BYTES):
                buffer += data
                for message in link.speech.split(buffer):
                    is_commit = link.is_commit_of_chunk(message)
                    if is_commit and self._tricks:
                        trick, done = self._tricks.popleft()
                        await trick(link, message)
                        done.set()
                    elif not link.is_mute:
                        await self._pass_on(link, message, link.to_server)
        if not link.is_mute:
            link.to_server.close()

    async def _down(self, link: Link) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await link.from_server.read(READ_BYTES):
                link.heard.set()
                if not link.is_deaf:
                    await self._pass_on(link, data, link.to_client)
        link.heard.set()
        if not link.is_deaf:
            link.to_client.close()

    async def _pass_on(self, link: Link, data: bytes, to: asyncio.StreamWriter) -> None:
        if self._bytes_left is not None:
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                to.write(data[: self._bytes_left])
                self._bytes_left = None
                with contextlib.suppress(ConnectionError):
                    await to.drain()
                link.reset()
                self._happened.set()
                return
        if self.bytes_per_second is None:
            to.write(data)
            await to.drain()
            return
        for start in range(0, len(data), DRIP_BYTES):
            to.write(data[start : start + DRIP_BYTES])
            await to.drain()
            await asyncio.sleep(DRIP_BYTES / self.bytes_per_second)
