"""The lease that a worker holds: taken, kept alive, doubted, given back."""

from __future__ import annotations

import logging
import secrets
from contextlib import contextmanager
from threading import Event as Flag
from threading import Thread
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from backfill.errors import BackfillError
from backfill.failures import describe
from backfill.ranges import is_free
from backfill.speed.pacing import gist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backfill.dialects import Dialect
    from backfill.keys import KeyValues
    from backfill.runs import KeyRange, Lease, Run
    from backfill.settings import Settings
    from backfill.store import Store

logger = logging.getLogger(__name__)

_FIGURES_SECONDS = 5.0
"""How often a reason is written again of which nothing but the figures have changed."""


_TROUBLE_SECONDS = 1.0
"""How long trouble lasts that is worth a word."""


class Holding:
    """One worker's claim on a key range, one range after the other."""

    def __init__(
        self,
        store: Store,
        run: Run,
        settings: Settings,
        dialect: Dialect,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._run = run
        self._seconds = settings.lease_seconds
        self._patience = settings.retry_seconds
        self._dialect = dialect
        self._clock = clock
        self._lease: Lease | None = None
        self._is_doubted = False
        self._tokens: set[str] = set()
        self._tried: list[str] = []
        self._renewed = 0.0
        self._shown = ""
        self.reason = ""
        """Why its worker waits, or goes more slowly than it was told to."""
        self.trouble = ""
        """Why the chunk at hand could not be committed yet."""

    @property
    def lease(self) -> Lease:
        assert self._lease is not None
        return self._lease

    # -- taking and giving back ----------------------------------------------------------

    def forget(self) -> None:
        """Hold nothing: the next claim is another range's."""
        self._lease = None
        self._is_doubted = False
        self._tokens.update(self._tried)
        self._tried.clear()

    def is_free(self, found: KeyRange) -> bool:
        """Whether nobody alive holds it. A claim of ours that we do not know of counts as nobody:
        it had no answer, or a server has taken over that got none of our later ones."""
        return is_free(found) or found.token in self._tokens

    def claim(self, found: KeyRange) -> bool:
        """Claim a range as it was found; False if somebody was faster."""
        token = secrets.token_hex(16)
        self._tokens.add(token)
        self._lease = self._store.claim(self._run, found, token, self._seconds)
        self._renewed = self._clock()
        return self._lease is not None

    def release(self) -> None:
        """Give the lease back at the end of its range."""
        self._store.release(self.lease)

    def let_go(self) -> None:
        """Give the lease back, if that can be done: else it ends by itself."""
        try:
            if self._lease is not None and not self._is_doubted:
                self._store.release(self._lease)
        except Exception as error:
            why = describe(error, self._dialect)
            logger.warning("The lease could not be given back, it ends by itself: %s", why)

    # -- keeping -------------------------------------------------------------------------

    def moved(self, lease: Lease) -> None:
        """Note what a committed checkpoint made of the lease."""
        self._lease = lease
        self._renewed = self._clock()
        self._shown, self.trouble = self.reason, ""

    def doubt(self) -> None:
        """The connection was lost: nobody knows whether the checkpoint was committed."""
        self._is_doubted = True

    def make_sure(self) -> None:
        """After any doubt claim again, never just read; and keep a lease that grows old."""
        if self._is_doubted:
            self._lease = self._store.claim_again(self.lease, self._seconds, self._tried)
            self._is_doubted = False
            self._tokens.update(self._tried)
            self._tried.clear()
            self._renewed = self._clock()
        self.pulse()

    def is_at(self, cursor: KeyValues) -> bool:
        """Make sure of the lease, and say whether its cursor stands there."""
        self.make_sure()
        return self.lease.cursor == cursor

    def pulse(self) -> None:
        """Renew the lease when a third of it is over, or to tell of trouble. Raises LeaseLost."""
        since = self._clock() - self._renewed
        is_news = bool(self.trouble) and gist(self.trouble) != gist(self._shown)
        if since > self._seconds / 3 or (is_news and since > _TROUBLE_SECONDS):
            self._renew(self.lease)

    def explain(self, reason: str) -> None:
        """Say in the lease why its worker waits. Raises LeaseLost."""
        self.reason = reason
        is_late = self._clock() - self._renewed > _FIGURES_SECONDS
        if gist(reason) != gist(self._shown) or (reason != self._shown and is_late):
            self._renew(self.lease)

    def _renew(self, lease: Lease) -> None:
        text = self.trouble or self.reason
        self._store.renew(lease, self._seconds, text or None)
        self._renewed = self._clock()
        self._shown = text

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the lease from a thread while one call computes a whole chunk."""
        done = Flag()
        keeper = Thread(target=self._dialect.call, args=(self._keep, self.lease, done), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()

    def _keep(self, lease: Lease, done: Flag) -> None:
        deadline = self._clock() + self._patience  # a call that hangs must lose it
        while not done.wait(self._seconds / 3) and self._clock() < deadline:
            self._renew_quietly(lease)

    def _renew_quietly(self, lease: Lease) -> None:
        """If the lease is lost the checkpoint will say so; if not, the next turn may succeed."""
        try:
            self._renew(lease)
        except (BackfillError, SQLAlchemyError) as error:
            logger.debug("lease not renewed: %s", describe(error, self._dialect))
