"""The Hugging Face hub through its own client, which keeps the cache, the login, the mirror and the offline switch.

Imported by the functions that need it: the client takes a while to load.
"""

from __future__ import annotations

import errno
import logging
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from huggingface_hub import DryRunFileInfo, HfApi, constants, errors, get_token, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from edgepack.errors import BuildError, SourceError, visible, without_secrets
from edgepack_packager.checkpoint import CONFIG, INDEX, read_weight_map
from edgepack_packager.checkpoint.files import ADAPTER, no_weights
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.progress import Progress, Silent
from edgepack_packager.source import catalog, needed, place, space
from edgepack_packager.source.space import Need
from edgepack_packager.text.files import TOKENIZER

# What the client's HTTP library raises; which library that is depends on the client's version.
HTTPError: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]

SITE = "https://huggingface.co"
LOGIN = "hf auth login"

# Without it, the client looks for agents in the environment and tells the hub which of them and which torch it found.
constants.HF_HUB_DISABLE_TELEMETRY = True


def pin(repository: str, revision: str | None) -> tuple[str, Path]:
    """Return the 40-hex commit of a branch, tag or commit (None: the default branch), and the folder of its files.

    Only config.json is fetched. Without a network: the commit that the revision was when it was last fetched.
    """
    with _sentences(repository, revision):
        commit = HfApi().resolve_revision(repository, revision=revision).resolved
        try:
            return commit, Path(hf_hub_download(repository, CONFIG, revision=commit)).parent
        except RemoteEntryNotFoundError:
            siblings = HfApi().model_info(repository, revision=commit).siblings or ()
    names = {file.rfilename for file in siblings}
    raise place.no_config(repository, names, lambda: read_object(_download(repository, commit, ADAPTER, Silent())))


def fetch_text(repository: str, commit: str, folder: Path) -> None:
    """Fetch every file that ``needed.text`` names. Raises ``SourceError`` without a tokenizer.json."""
    names = _names(repository, commit, folder)
    if TOKENIZER not in names:
        raise SourceError(
            f"{repository} has no {TOKENIZER}.",
            hint="Download it, save its tokenizer with transformers' save_pretrained(), and build the folder.",
        )
    for name in needed.text(names):
        _download(repository, commit, name, Silent())


def weights_size(repository: str, commit: str, folder: Path) -> int:
    """Return the bytes of all weight files, fetched or not. Raises as ``fetch_weights``."""
    return sum(_planned(repository, commit, name).file_size or 0 for name in _weights(repository, commit, folder))


def fetch_weights(repository: str, commit: str, folder: Path, progress: Progress, others: Sequence[Need]) -> None:
    """Fetch the weights: model.safetensors, or the shards. See ``source.fetch_weights``."""
    files = _weights(repository, commit, folder)
    missing = sum(_missing(repository, commit, name) for name in files)
    space.check([Need(f"{repository} takes", Path(constants.HF_HUB_CACHE), missing), *others])
    if missing:
        progress.stage(f"Fetching {repository}", missing)
    for name in files:
        _download(repository, commit, name, progress)


def _weights(repository: str, commit: str, folder: Path) -> list[str]:
    """Return the names of the weight files, once the index that names them is there."""
    names = _names(repository, commit, folder)
    files = needed.weights(names)
    if not files:
        raise no_weights(repository, names)
    if files == [INDEX]:
        return sorted(set(read_weight_map(_download(repository, commit, INDEX, Silent())).values()))
    return files


def _names(repository: str, commit: str, folder: Path) -> set[str]:
    """Return the paths of the repository's files that ``needed`` looks at; without the hub, of the cache's."""
    with _sentences(repository, commit):
        try:
            info = HfApi().model_info(repository, revision=commit)
            return needed.seen(file.rfilename for file in info.siblings or ())
        except (HTTPError, OfflineModeIsEnabled) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            cached = needed.seen(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
            if TOKENIZER not in cached or not needed.weights(cached):
                raise _unreachable(repository, error) from _open(error)
            return cached


def _missing(repository: str, commit: str, name: str) -> int:
    """Return the bytes of a file that are yet to be fetched: none where the cache has it, under any revision."""
    plan = _planned(repository, commit, name)
    return (plan.file_size or 0) if plan.will_download else 0


def _planned(repository: str, commit: str, name: str) -> DryRunFileInfo:
    with _sentences(repository, commit):
        return hf_hub_download(repository, name, revision=commit, dry_run=True)


def _download(repository: str, commit: str, name: str, progress: Progress) -> Path:
    """Return a file's path in the cache, fetched if it is not there."""
    with _sentences(repository, commit):
        return Path(hf_hub_download(repository, name, revision=commit, tqdm_class=_told(progress)))


def _told(progress: Progress) -> type[Any]:
    """Return what the client takes for a class of progress bars; it tells ``progress`` the bytes that were written."""

    class Bar:
        def __init__(self, **options: object) -> None:
            pass

        def update(self, count: float | None = 1) -> None:
            progress.advance(int(count or 0))

        def update_transfer(self, count: float | None = 1) -> None:
            """With it the client counts what came over the network apart, which may be less than what is written."""

        def set_postfix_str(self, text: str, refresh: bool = False) -> None: ...

        def set_transfer_postfix_str(self, text: str, refresh: bool = False) -> None: ...

        def close(self) -> None: ...

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *error: object) -> None: ...

    return Bar


@contextmanager
def _sentences(repository: str, revision: str | None) -> Iterator[None]:
    """Turn what the client raises into one sentence and the next step."""
    try:
        yield
    except GatedRepoError:
        raise SourceError(
            f"{repository} is gated: its owner gives it to those who have agreed to its licence.",
            hint=f"Agree at {SITE}/{repository}, then log in with: {LOGIN}",
        ) from None
    except RepositoryNotFoundError:
        raise SourceError(
            f"{repository} is no model of the hub that you can see, and no folder here.",
            hint=catalog.suggestion(repository) or f"Check the name; if it is private, log in with: {LOGIN}",
        ) from None
    except RevisionNotFoundError:
        raise SourceError(
            f"{repository} has no revision {revision!r}.", hint=f"See {SITE}/{repository}/commits for those it has."
        ) from None
    except RemoteEntryNotFoundError as error:
        name = error.response.url.path.rpartition("/")[2]
        raise SourceError(
            f"{repository} has no {name}.", hint="Choose a repository in Hugging Face layout, with safetensors weights."
        ) from None
    except HFValidationError as error:
        raise SourceError(f"{repository!r} is no name of a repository.", hint=_first_line(error)) from None
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, RevisionResolutionError) as error:
        raise _unreachable(repository, error) from _open(error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BuildError(
                f"{constants.HF_HUB_CACHE} is full.", hint="Free some space, or choose another place with HF_HOME."
            ) from None
        raise SourceError(
            f"{repository} could not be fetched: {_first_line(error)}", hint="Repeat the command."
        ) from _open(error)


def _secrets() -> Iterator[str]:
    """Yield what nobody is to read: the token, and the password in a mirror's address, in each of its spellings."""
    yield get_token() or ""
    user = constants.ENDPOINT.partition("://")[2].partition("/")[0].rpartition("@")[0]
    if user:
        yield b64encode(unquote(user).encode()).decode()
        yield from (user, unquote(user))
        secret = user.partition(":")[2] or user
        yield from (secret, unquote(secret))


def _told_openly(text: str) -> str:
    """Return what a server or the client said, without secrets that it repeats."""
    for secret in _secrets():
        if len(secret) > 3:
            text = text.replace(secret, "***")
    return without_secrets(text)


def _open(error: Exception) -> Exception | None:
    """Return a cause that a traceback may show, None for one that holds a secret."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    return error if all(_told_openly(str(each)) == str(each) for each in chain) else None


class _Openly(logging.Filter):
    """Lets the client log what it has to say without secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = visible(_told_openly(record.getMessage()), keep="\n"), ()
        return True


for _handler in logging.getLogger("huggingface_hub").handlers:
    _handler.addFilter(_Openly())


def _unreachable(repository: str, error: Exception) -> SourceError:
    if constants.is_offline_mode():
        return SourceError(
            f"The network is switched off by HF_HUB_OFFLINE, and {constants.HF_HUB_CACHE} lacks files of {repository}.",
            hint="Unset it for one build with a network, or copy the cache of a machine that has the model.",
        )
    cause = error if isinstance(error, HfHubHTTPError) else error.__cause__ or error
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        said = f": {_told_openly(cause.server_message).rstrip('.')}" if cause.server_message else ""
        return SourceError(
            f"{constants.ENDPOINT} answered {status} for {repository}{said}.",
            hint=f"The token is not accepted; log in with: {LOGIN}" if status in (401, 403) else "Try again later.",
        )
    return SourceError(
        f"{constants.ENDPOINT} cannot be reached ({_first_line(cause)}), and {constants.HF_HUB_CACHE} lacks files of "
        f"{repository}.",
        hint="Check the network, or name a mirror with HF_ENDPOINT. Files that were fetched whole are kept.",
    )


def _first_line(error: BaseException) -> str:
    return _told_openly(str(error)).partition("\n")[0]
