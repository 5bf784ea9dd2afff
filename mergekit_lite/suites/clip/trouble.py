"""Trouble with the Hugging Face hub: what may pass is tried again, what does not is said in words one can act on."""

import errno
import re
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mergekit_lite.cache import cache_dir
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip.looking import is_only_looking
from mergekit_lite.suites.words import spelt

Answer = TypeVar("Answer")

PAUSES = (2.0, 8.0, 30.0)
"""Seconds to wait before trying again. huggingface_hub repeats some requests by itself, with pauses of 1 to 8 seconds,
but neither a download that ends in a server error nor the listings and tables of data sets."""

LONGEST = 300.0
"""Seconds waited at most before one more try, however long the hub asks for: its limits count five minutes."""

_NETWORK = ("httpx", "httpcore", "requests", "urllib3", "aiohttp", "ssl", "socket")  # who raises when nobody answers
_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}  # a file may stand in a folder's place


def retried(call: Callable[[], Answer], pauses: tuple[float, ...] = PAUSES) -> Answer:
    """Return what `call` returns; after a rate limit (429) or a server error (5xx) wait and call again.

    Longer pauses that the hub asks for (Retry-After) are kept, up to `LONGEST`. Other errors are not repeated.
    """
    for pause in pauses:
        try:
            return call()
        except Exception as error:
            answer = response(error)
            if answer is None or (answer.status_code != 429 and answer.status_code < 500):
                raise
            time.sleep(min(max(pause, _asked_for(answer.headers)), LONGEST))
    return call()


def _asked_for(headers: Any) -> float:
    """Return how many seconds the hub asks to wait; 0 if it does not say, or says it in a way that is not understood.

    It may name a date instead. That is the hub's time, so it is compared with the time at which the hub says it
    answered, and this machine's clock, which may be off by a day, plays no part.
    """
    asked = str(headers.get("Retry-After", "")).strip()
    if asked.isdecimal():
        return float(asked)
    try:
        then = parsedate_to_datetime(asked)
        return (then - parsedate_to_datetime(str(headers.get("Date", "")))).total_seconds()
    except (ValueError, TypeError, OverflowError):  # no date; one with and one without a time zone; beyond all dates
        return 0.0


def explained(error: BaseException, what: str) -> KitError:
    """Return why `what` could not be fetched, and what to do; `error` is what a library of the hub raised."""
    if isinstance(error, KitError):
        return error
    reason, then = _reason(error)
    return KitError(f"{spelt(what)} could not be fetched: {reason}. {then}.")


def _reason(error: BaseException) -> tuple[str, str]:
    """Return what went wrong and what to do, neither with a full stop."""
    answer, errors = response(error), list(chain(error))
    status = None if answer is None else answer.status_code
    # Errors of TLS count as those of the system, but their numbers mean something else.
    insecure = next((one for one in errors if isinstance(one, ssl.SSLError)), None)
    numbers = {one.errno for one in errors if isinstance(one, OSError) and not isinstance(one, ssl.SSLError)}
    words = " ".join(str(one) for one in errors)
    fetch = "run `mergekit-lite fetch SUITE`"

    def raised(kind: type[BaseException]) -> bool:
        return any(isinstance(one, kind) for one in errors)

    if numbers & _FULL or "No space left on device" in words:
        return f"the disk of {constants.HF_HUB_CACHE} is full", "Free some space or set HF_HOME to another disk"
    if numbers & _CLOSED or raised(PermissionError):
        reason = f"the folder {constants.HF_HUB_CACHE} cannot be written to"
        return reason, "Make it writable or set HF_HOME to a folder that is"
    if raised(OfflineModeIsEnabled) and is_only_looking():
        return "it is not here, and nothing is fetched while only looking", f"To bring it, {fetch}"
    if raised(OfflineModeIsEnabled):
        reason = "it is not in the cache, and the hub may not be asked (HF_HUB_OFFLINE is set)"
        return reason, f"Unset HF_HUB_OFFLINE and {fetch}, or copy {constants.HF_HUB_CACHE} from where it was fetched"
    if raised(GatedRepoError):
        reason = "it is gated: its owner lets in only those who ask"
        return reason, "Ask for access on its page of the hub, then set HF_TOKEN to your token"
    if raised(RepositoryNotFoundError):
        reason = "the hub has no such repository, or it is private"
        return reason, "Check the name on the hub; if it is private, set HF_TOKEN to a token that may read it"
    if raised(RevisionNotFoundError):
        reason = "the repository no longer has the commit that is pinned here"
        return reason, f"Delete the folder {cache_dir('sources', 'clip')}, so that its present state is asked for"
    if status in (401, 403):
        then = "Set HF_TOKEN to a valid token that may read it, or unset HF_TOKEN: public files need none"
        return f"the hub refused it ({status})", then
    if status == 404:
        return "the repository has no such file (404)", "Look at its files on the hub: it may have been renamed"
    if status == 429:
        then = f"Wait some minutes and {fetch} again: it resumes where it stopped. A token in HF_TOKEN raises the limit"
        return "the hub's limit of requests is reached (429)", then
    if status is not None and status >= 500:
        then = f"Look at status.huggingface.co, then {fetch} again: it resumes where it stopped"
        return f"the hub has trouble ({status})", then
    if "Consistency check failed" in words:
        sizes = re.search(r"of size (\d+) but has size (\d+)", words)
        reason = f"{sizes[2]} bytes arrived, and the hub had announced {sizes[1]}" if sizes else "it arrived incomplete"
        return reason, f"Look at the network, then {fetch} again"
    if "TooManyRedirects" in [type(one).__name__ for one in errors]:  # httpx and requests have one each
        then = f"Set HF_ENDPOINT to another mirror, or unset it, and look at the proxy, if there is one; then {fetch}"
        return f"{constants.ENDPOINT} sends the request on and on, and never to an answer", then
    if insecure or "[SSL:" in words:
        reason = f"the secure connection to {constants.ENDPOINT} failed ({spelt(insecure or error)})"
        then = (
            f"Look at this machine's clock (it says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC), since certificates are "
            "valid for a time only, and at the proxy: if it signs for other servers itself, set SSL_CERT_FILE to its "
            f"certificate. Then {fetch}"
        )
        return reason, then
    if any(isinstance(one, ConnectionError | TimeoutError) or _module(one).startswith(_NETWORK) for one in errors):
        then = (
            f"Look at the network and proxy, or set HF_ENDPOINT to a mirror, then {fetch}. Without a network, copy the "
            f"folder {constants.HF_HUB_CACHE} from a machine where it was fetched"
        )
        return f"it is not in the cache, and {constants.ENDPOINT} does not answer", then
    return spelt(f"{type(error).__name__}: {error}").rstrip(". "), f"If this may pass, {fetch} again"


def lacks_the_file(error: BaseException) -> bool:
    """Return whether the hub answered that the repository does not have the file; not that it could not be asked."""
    local = LocalEntryNotFoundError  # of the cache, in trouble of every kind, and yet derived from the other one
    return any(isinstance(one, EntryNotFoundError) and not isinstance(one, local) for one in chain(error))


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what caused it and so on: the hub's own errors often only say that "an error happened"."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def response(error: BaseException) -> Any:
    """Return the hub's answer that led to `error`, with `status_code` and `headers`; None if it gave none."""
    answers = (getattr(one, "response", None) for one in chain(error))
    return next((answer for answer in answers if getattr(answer, "status_code", None) is not None), None)


def _module(error: BaseException) -> str:
    return type(error).__module__
