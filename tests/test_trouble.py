"""Words and pauses for trouble with the hub that no small hub on this machine can make: clocks and certificates."""

import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest

from mergekit_lite.suites.clip import trouble


class Busy(Exception):
    def __init__(self, headers: Mapping[str, str]) -> None:
        self.response = SimpleNamespace(status_code=429, headers=headers)


@pytest.mark.parametrize("off", [timedelta(days=-1), timedelta(0), timedelta(days=1)], ids=str)
def test_a_date_to_wait_for_is_read_by_the_hubs_clock(monkeypatch: pytest.MonkeyPatch, off: timedelta) -> None:
    """Whether this machine's clock is right or off by a day, 90 seconds are 90 seconds."""
    there = datetime.now(UTC).replace(microsecond=0) + off
    headers = {"Date": format_datetime(there, usegmt=True)}
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)

    def asked_to_wait(value: str) -> float:
        outcomes: list[Exception | str] = [Busy({**headers, "Retry-After": value}), "done"]

        def call() -> str:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        assert trouble.retried(call) == "done"
        return waited.pop()

    assert asked_to_wait(format_datetime(there + timedelta(seconds=90), usegmt=True)) == 90
    assert asked_to_wait(format_datetime(there - timedelta(seconds=90), usegmt=True)) == 2, "it is over already"
    assert asked_to_wait(format_datetime(there + timedelta(days=400), usegmt=True)) == trouble.LONGEST
    assert asked_to_wait("Wed, 21 Oct 2015 07:28:00 -0000") == 2, "without a time zone it cannot be compared"
    assert asked_to_wait("soon") == asked_to_wait("") == asked_to_wait("-5") == asked_to_wait("²") == 2
    assert asked_to_wait(" 40 ") == 40
    del headers["Date"]
    assert asked_to_wait(format_datetime(there + timedelta(seconds=90), usegmt=True)) == 2


def test_a_certificate_of_another_day_is_said() -> None:
    error = ssl.SSLCertVerificationError("certificate verify failed: certificate is not yet valid")
    told = str(trouble.explained(error, "the file"))
    assert "certificate is not yet valid" in told
    assert "valid for a time only" in told
