"""Calls to the Hub: errors as one line with their remedy, and progress bars on terminals alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tide.errors import TideError
from tide.hub.names import Repository
from tide.messages import one_line

_TOKEN = "log in (`hf auth login`) or set HF_TOKEN"


@contextmanager
def refusals(repository: Repository) -> Iterator[None]:
    """Turns what ``huggingface_hub`` raises into :class:`~tide.errors.TideError`; its bars are shown on a terminal."""
    from huggingface_hub import errors

    unlisted = getattr(errors, "CachedRepoTreeNotFoundError", errors.LocalEntryNotFoundError)  # newer versions have it
    try:
        with _bars():
            yield
    except errors.GatedRepoError:
        raise TideError(f"{repository} is gated; ask for access on its page, then {_TOKEN}") from None
    except errors.RepositoryNotFoundError:
        raise TideError(f"{repository} does not exist on the Hub, or is private; check the name, or {_TOKEN}") from None
    except errors.RevisionNotFoundError:
        raise TideError(
            f"{repository.name} has no revision {repository.revision}; give a branch, a tag or a commit of it"
        ) from None
    except (errors.LocalEntryNotFoundError, unlisted, errors.OfflineModeIsEnabled):
        raise TideError(
            f"{repository} is not in the cache and the Hub is not asked or not reached; "
            "fetch it once with a connection and without HF_HUB_OFFLINE"
        ) from None
    except errors.LocalTokenNotFoundError:
        raise TideError(f"{repository} needs a token and there is none; {_TOKEN}") from None
    except errors.HfHubHTTPError as error:
        raise TideError(_answered(repository, error)) from error
    except errors.HTTPError as error:  # that of the HTTP library which this huggingface_hub uses
        raise TideError(
            f"the Hub could not be reached for {repository} ({one_line(error)}); try again later"
        ) from error


@contextmanager
def _bars() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or sys.stderr.isatty():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _answered(repository: Repository, error: Exception) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == 401:
        return f"no token was given, or the Hub does not take it, for {repository}; {_TOKEN}"
    if status == 403:
        reason = one_line(getattr(error, "server_message", None) or error)
        return f"this token may not write to {repository.name} ({reason}); use one that may"
    return f"the Hub refused {repository} ({one_line(error)}); try again later"
