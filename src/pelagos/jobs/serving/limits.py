"""Limits of a server: what a request may cost, and the option that changes each limit."""

import math
from dataclasses import dataclass

MIB = 2**20
_FLOAT_BYTES = 4


class Refused(Exception):
    """A request that is not answered; its text says why and what to do.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What one request may hold and ask for, and how many may be in work.

    Attributes:
        request_mib: of its body, in MiB.
        answer_mib: of the forecasts, as float32, in MiB.
        samples: in one request.
        points: of the grid.
        leads: lead times, or steps of a rollout.
        waiting: requests in work or in wait at the same time.
        timeout_seconds: for the body to arrive, and for the answer to be made.
    """

    request_mib: int = 32
    answer_mib: int = 256
    samples: int = 64
    points: int = 2**20
    leads: int = 64
    waiting: int = 64
    timeout_seconds: float = 60.0

    @property
    def request_bytes(self) -> int:
        """The largest body."""
        return self.request_mib * MIB

    def check_body(self, num_bytes: int) -> None:
        """Raise Refused (413) if a body has more bytes than allowed."""
        if num_bytes > self.request_bytes:
            raise Refused(
                413,
                f"the request has more than {self.request_mib} MiB, which is the limit. Send fewer "
                "samples at a time, or start the server with a larger --max-request-mib",
            )

    def check_size(self, samples: int, channels: int, points: int, leads: int, total: int) -> None:
        """Raise Refused (422) if a request is larger than allowed.

        Args:
            total: forecasts that it asks for.
        """
        _check("samples", samples, self.samples, "--max-samples")
        _check("grid points", points, self.points, "--max-points")
        _check("lead times or steps", leads, self.leads, "--max-leads")
        size = math.ceil(total * channels * points * _FLOAT_BYTES / MIB)
        _check("MiB of forecasts", size, self.answer_mib, "--max-answer-mib")


def _check(what: str, count: int, limit: int, option: str) -> None:
    if count > limit:
        raise Refused(
            422,
            f"the request is for {count:,} {what}, the limit is {limit:,}. Ask for less at a time, or "
            f"start the server with a larger {option}",
        )
