"""Talking to the Hugging Face hub, and saying what is wrong when that fails."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from runner.errors import UserError


@contextmanager
def explain(what: str, key: str, value: str) -> Iterator[None]:
    """Turn the many errors of a failed download into one message.

    Args:
        what: "model" or "dataset"; key, value: the configuration key that named it, and its value.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(_message(what, key, value, error)) from error


def _message(what: str, key: str, value: str, error: BaseException) -> str:
    chain, seen = [], error
    while seen is not None and len(chain) < 10:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    from huggingface_hub.constants import ENDPOINT as endpoint

    if names & {"GatedRepoError"}:
        return f"{key}={value}: access to this {what} is restricted; accept its terms on the hub and set HF_TOKEN"
    if names & {"RevisionNotFoundError"}:
        return f"{key}={value}: the hub has no such revision of this {what}"
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError", "HFValidationError"}:
        return f"{key}={value}: there is no such folder here, and no such {what} on the hub at {endpoint}"
    unreachable = {"ConnectionError", "ConnectError", "ConnectTimeout", "TimeoutException", "OfflineModeIsEnabled"}
    if names & (unreachable | {"LocalEntryNotFoundError", "OfflineModeIsEnabledError"}) or os.environ.get(
        "HF_HUB_OFFLINE"
    ):
        return (
            f"{key}={value}: the hub at {endpoint} cannot be reached, and this {what} is not in the cache. Set "
            f"HF_ENDPOINT to a mirror, fill the cache (HF_HOME) on a connected machine, or set {key} to a local folder"
        )
    return (
        f"{key}={value}: the {what} cannot be loaded: {str(error).strip().splitlines()[0] if str(error) else error!r}"
    )
