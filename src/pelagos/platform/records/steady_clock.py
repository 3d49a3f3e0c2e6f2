"""The time of a run's records: the wall clock's when a launch began, and from there on monotonic."""

import time
from dataclasses import dataclass, field


def _offset() -> float:
    return time.time() - time.monotonic()


@dataclass(frozen=True)
class SteadyClock:
    """Seconds since 1970 that never jump, whoever sets the machine's clock meanwhile.

    The monotonic clock is one for all processes of a machine, so that a launch's processes there, which
    receive this object, agree.

    Attributes:
        offset: of the monotonic clock.
    """

    offset: float = field(default_factory=_offset)

    def now(self) -> float:
        """Return the time."""
        return self.offset + time.monotonic()

    @classmethod
    def after(cls, moment: float) -> "SteadyClock":
        """Return a launch's clock: the wall's, but not before `moment`, that of an earlier record."""
        return cls(max(_offset(), moment - time.monotonic()))
