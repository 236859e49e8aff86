"""A token bucket: how often somebody may ask. Pure; times in seconds of a monotonic clock."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bucket:
    """``left`` requests at the moment ``at_s``; it fills with ``per_s`` a second up to ``burst``."""

    left: float
    at_s: float
    per_s: float
    burst: float

    def take(self, now_s: float) -> "Bucket | None":
        """The bucket after one request, or None if there is none left."""
        left = min(self.burst, self.left + max(0.0, now_s - self.at_s) * self.per_s)
        return Bucket(left - 1, now_s, self.per_s, self.burst) if left >= 1 else None
