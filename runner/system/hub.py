"""One clear message for each failure of a download from the Hugging Face hub, or of an upload to it."""

import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from runner.system.errors import UserError
from runner.system.spelling import did_you_mean

_CONNECT_SECONDS = 10.0


@contextmanager
def explain(what: str, key: str, value: str) -> Iterator[None]:
    """Turn the many errors of a failed download into one message.

    Args:
        what: "model" or "dataset".
        key: the configuration key that names it.
        value: the value of this key.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        with _offline_if_silent(value):
            yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(_message(what, key, value, error)) from error


@contextmanager
def explain_upload(repo_id: str, token: str) -> Iterator[None]:
    """Turn the many errors of a failed upload into one message, which does not hold the token.

    Raises:
        UserError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise UserError(f"{repo_id}: HF_HUB_OFFLINE=1 forbids to reach the hub: unset it to share")
    if not _listens(constants.ENDPOINT):
        raise UserError(f"{repo_id}: {_unreachable(constants.ENDPOINT)}")
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = _refused(repo_id, constants.ENDPOINT, error)
        if text is None:
            raise
        raise UserError(text.replace(token, "(token)")) from error


def _unreachable(endpoint: str) -> str:
    return f"the hub at {endpoint} cannot be reached; see to the connection, or set HF_ENDPOINT to another hub"


def _refused(repo_id: str, endpoint: str, error: Exception) -> str | None:
    """The message for a failed upload; None if the error does not come from the hub."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        answers = {
            401: "it does not know the token: log in again by `hf auth login`, or set HF_TOKEN to one that is valid",
            403: f"the token may not write there: take one with the right to write to {repo_id.split('/')[0]}",
            404: "there is no such repository, or the token may not see it",
            409: "another upload is going on, or a repository of this name is in the way; try again later",
            412: "it was changed by somebody else during this upload: look at it, and then share again",
            413: "it takes no files of this size",
            429: "too many requests: wait a little, then share again",
        }
        reason = answers.get(status, f"status {status}, {_first_line(error)}")
        return f"{repo_id}: the hub at {endpoint} refuses: {reason}"
    if any(kind.__module__.split(".")[0] in ("httpx", "httpx2") for kind in type(error).__mro__):
        return f"{repo_id}: the connection to the hub at {endpoint} failed ({_first_line(error)}): share again"
    if isinstance(error, (OSError, ValueError, RuntimeError)):
        return f"{repo_id}: the upload to {endpoint} failed: {' '.join(str(error).split()) or repr(error)}"
    return None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


@contextmanager
def _offline_if_silent(value: str) -> Iterator[None]:
    """If nothing listens at the hub's address, use the cache at once, without the minute of retries and warnings of
    huggingface_hub."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or Path(value).expanduser().exists() or _listens(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


@cache
def _listens(endpoint: str) -> bool:
    """Whether the URL's host accepts connections. Behind a proxy that is unknown: True."""
    url = urlsplit(endpoint)
    if url.hostname is None or url.scheme in urllib.request.getproxies() or "all" in urllib.request.getproxies():
        return True
    for pause in (1.0, 0.0):
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            socket.create_connection((url.hostname, port), timeout=_CONNECT_SECONDS).close()
            return True
        except OSError:
            time.sleep(pause)
    return False


def _message(what: str, key: str, value: str, error: BaseException) -> str:
    chain, seen = [], error
    while seen is not None and len(chain) < 10:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    from huggingface_hub.constants import ENDPOINT as endpoint

    meant = did_you_mean(Path(value))
    if names & {"GatedRepoError"}:
        return f"{key}={value}: access to this {what} is restricted; accept its terms on the hub and set HF_TOKEN"
    if names & {"RevisionNotFoundError"}:
        return f"{key}={value}: the hub has no such revision of this {what}"
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError", "HFValidationError"}:
        return f"{key}={value}: there is no such folder here, and no such {what} on the hub at {endpoint}{meant}"
    unreachable = {"ConnectionError", "ConnectError", "ConnectTimeout", "TimeoutException", "OfflineModeIsEnabled"}
    if names & (unreachable | {"LocalEntryNotFoundError", "OfflineModeIsEnabledError"}):
        return (
            f"{key}={value}: the hub at {endpoint} cannot be reached, and this {what} is not in the cache. Set "
            f"HF_ENDPOINT to a mirror, fill the cache (HF_HOME) on a connected machine, or set {key} to a local folder"
            f"{meant}"
        )
    if "trust_remote_code" in str(error):
        return f"{key}={value}: this {what} comes with code of its own, which is never run; choose another {what}"
    return (
        f"{key}={value}: the {what} cannot be loaded: {str(error).strip().splitlines()[0] if str(error) else error!r}"
    )
