"""Whether the secondary's guest says anything at all while the primary's does. Pure; counts between checkpoints.

A checkpoint makes the secondary's guest whole again, so a broken one shows only in between: it sends nothing, and every
frame of the primary waits for the next checkpoint. What that means is for core to judge (``core.trouble``).
"""

from dataclasses import dataclass


@dataclass
class Silence:
    """Since the secondary's last frame: the intervals between checkpoints in which the primary sent something."""

    intervals: int = 0
    frames: int = 0
    began_us: int = 0
    _compared: int = 0
    _secondary: int = 0

    def checkpoint(self, compared: int, secondary: int, now_us: int) -> None:
        """A checkpoint was completed; the totals of frames given to colo-compare, and of the secondary's."""
        sent, self._compared = compared - self._compared, compared
        if secondary != self._secondary:
            self._secondary = secondary
            self.intervals = self.frames = 0
        elif sent:
            self.began_us = self.began_us if self.intervals else now_us
            self.intervals += 1
            self.frames += sent

    def lasts_us(self, secondary: int, now_us: int) -> int:
        """For how long; 0 when the secondary has sent a frame since the last checkpoint."""
        return now_us - self.began_us if self.intervals and secondary == self._secondary else 0
