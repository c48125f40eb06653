"""From the load of the worst signal to our share of the time: pure arithmetic, a step a tick.

Additive up, multiplicative down (Chiu and Jain, 1989). What we steer by is mostly of our own
making, so that a cut by half would halve the load, and the next ticks would win it all back:
block/spirit began so and left it for the sawtooth. Hence three things between free and stop:
the step up grows smaller as the load comes nearer, there is a band in which nothing is changed,
and a cut takes what would bring a load of our own making back into that band.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

TICK_SECONDS = 1.0
"""Signals are read each second; to act twice on one reading is to overdo it."""
FREE = 0.4
"""Below this load the share grows. This and the next are block/spirit's."""
BUSY = 0.7
"""Above this load it is cut; between them it holds."""
AIM = (FREE + BUSY) / 2
STEP = 0.05
"""Growth a tick where the load is nothing: from the lowest share to the whole in 20 s."""
CUT = 0.5
"""A cut takes half at most, and does so at the stop level and above (block/spirit)."""
COOLDOWN = 2
"""Ticks after a cut in which nothing else is done: the average of a load needs as many to show
what came of it (block/spirit's)."""
LOWEST = 0.05
"""A share is never less: to stop is what stop levels are for."""
AGAIN = 0.1
"""The share with which work begins again after a stop."""
_NEAR = 0.2
_SLOWEST = 0.1
"""So near to the share that was cut last, growth slows down to this part, and gets faster again
beyond it: the idea of CUBIC (RFC 9438), for loads that rise long after they were caused."""
_SMALLER_BELOW = 0.25
"""Shares below this take smaller chunks, too: long rests alone leave each chunk as hard as ever."""


@dataclass(frozen=True, slots=True)
class Steering:
    """Our share of the time, for how many ticks it stays as it is, and where it went wrong."""

    share: float = 1.0
    holds: int = 0
    worst: float | None = None
    """The share that was cut last."""

    def after(self, load: float, *, may_grow: bool = True) -> Steering:
        """Return what follows a tick at this load: 0 is free, 1 the stop level."""
        if self.holds and load < 1:
            return replace(self, holds=self.holds - 1)
        if load > BUSY:
            by = CUT if load >= 1 else max(CUT, AIM / load)
            return Steering(max(LOWEST, self.share * by), COOLDOWN, self.share)
        if load < FREE and may_grow:
            return replace(self, share=min(1.0, self.share + self._step(load)))
        return self

    def _step(self, load: float) -> float:
        step = STEP * (1 - load / FREE)
        if self.worst is None:
            return step
        return step * min(1.0, max(_SLOWEST, abs(self.share - self.worst) / _NEAR))

    def after_stop(self) -> Steering:
        """Return how work begins again when a stop level has cleared."""
        if self.share <= AGAIN:
            return replace(self, holds=COOLDOWN)
        return Steering(AGAIN, COOLDOWN, self.share)

    @property
    def size_factor(self) -> float:
        """What a chunk's size is multiplied by."""
        return min(1.0, self.share / _SMALLER_BELOW)

    def rest(self, seconds: float, nice: float) -> float:
        """Return the rest after so many seconds of work: `nice` times as long at a whole share."""
        return seconds * ((1 + nice) / self.share - 1)
