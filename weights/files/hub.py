"""Fetch a model by its name: return a folder of huggingface_hub's cache, and fill it from the hub if necessary.

The package's own settings hold: ``HF_ENDPOINT`` (another hub), ``HF_HOME`` or ``HF_HUB_CACHE`` (where the cache is),
``HF_TOKEN``, ``HF_HUB_OFFLINE``. This module adds three things: a hub that does not answer soon counts as out of reach,
weights are not fetched twice in two formats, and contents are compared with the hub's checksums.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ...files import user_path
from ...tokenizer import answer_within
from .folders import CONFIG_FILE, WEIGHT_FILES, read_index

__all__ = ["HubError", "fetch"]

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "generation_config.json"),
)

# Seconds in all for the hub's first answer: time-outs of a connection start again for each of a host's addresses, and
# do not cover the look-up of its name.
_PATIENCE = 8.0

_BUSY = {408, 429, 500, 502, 503, 504}


class HubError(OSError):
    """A model that is not available by its name. The message is one line: what was looked for, where, and the fix.

    Example: see `gptladder.weights.resolve`.
    """


class _OutOfReachError(Exception):
    """The hub does not answer. The message gives the reason."""


# huggingface_hub is imported in functions, because its import takes a tenth of a second; so its classes are not used in
# signatures.


@dataclass(frozen=True)
class _HubFile:
    """A file of a model on the hub, with its checksum: the SHA-256 of a large file, or git's name of a small one."""

    name: str
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True)
class _HubModel:
    """A model on the hub: its commit, and its files by name."""

    commit: str | None
    files: dict[str, _HubFile]


def fetch(
    name: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """Return a folder in the cache with the files of a model on the hub; fetch those that are not there.

    A transfer whose connection breaks continues where it broke. If the hub is out of reach, a whole copy in the cache
    is used.

    Args:
        name: ``"gpt2"``, ``"gpt2-medium"``, ``"gpt2-large"``, ``"gpt2-xl"``, ``"distilgpt2"``, or ``"owner/name"``.
        revision: branch, tag or commit; ``None`` is ``"main"``.
        token: for private and gated models; ``None`` takes the one that ``hf auth login`` or ``HF_TOKEN`` gave.
        local_files_only: never ask the hub.
        endpoint: address of the hub, in place of ``HF_ENDPOINT``'s.
        cache_dir: the cache, in place of ``HF_HUB_CACHE``'s.

    Raises:
        HubError: no such model or revision, no right to it, no weights for PyTorch in it, contents that do not have
            the hub's checksum (they are removed), or no answer within 10 seconds and no whole copy in the cache.
        FileError: the index of its shards is not one that may be followed.
    """
    from huggingface_hub import constants

    cache = user_path(cache_dir if cache_dir is not None else constants.HF_HUB_CACHE)
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    if local_files_only:
        return _from_cache(name, revision, cache, "the hub was not asked (local_files_only)")
    try:
        model = _ask(name, revision, token, endpoint)
    except _OutOfReachError as error:
        return _from_cache(name, revision, cache, str(error))
    return _from_hub(name, revision, token, endpoint, cache, model)


def _ask(name: str, revision: str | None, token: str | None, endpoint: str) -> _HubModel:
    """Return the hub's list of the model's files, with their checksums."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # httpx's in huggingface_hub 1, httpx2's in 2 # pyright: ignore[reportPrivateImportUsage]
        OfflineModeIsEnabled,
    )

    api = HfApi(endpoint=endpoint, token=token)
    try:
        info = answer_within(
            _PATIENCE, lambda: api.model_info(name, revision=revision, files_metadata=True, timeout=_PATIENCE)
        )
    except HFValidationError as error:
        raise HubError(f"{name!r} is neither a folder nor a name that a model can have; give one of them") from error
    except HfHubHTTPError as error:
        if error.response.status_code in _BUSY:
            raise _OutOfReachError(f"{endpoint} answered {error.response.status_code}") from error
        raise _refusal(error, name, revision, endpoint) from error
    except OfflineModeIsEnabled as error:
        raise _OutOfReachError(f"{endpoint} was not asked (HF_HUB_OFFLINE is set)") from error
    except TimeoutError as error:
        raise _OutOfReachError(f"{endpoint} did not answer within {_PATIENCE:.0f} seconds") from error
    except (HTTPError, OSError) as error:
        raise _OutOfReachError(f"{endpoint} cannot be reached ({first_line(error)})") from error
    except ValueError as error:  # JSON
        raise HubError(f"{endpoint} does not answer as a hub does ({first_line(error)}); check HF_ENDPOINT") from error
    files = [
        _HubFile(file.rfilename, None if file.lfs is None else file.lfs.sha256, file.blob_id)
        for file in info.siblings or []
    ]
    return _HubModel(info.sha, {file.name: file for file in files})


def _from_hub(name: str, revision: str | None, token: str | None, endpoint: str, cache: Path, model: _HubModel) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    )

    # Does the repository hold a model?
    files = model.files
    weights = next((file_name for file_name in WEIGHT_FILES if file_name in files), None)
    if weights is None or CONFIG_FILE not in files:
        lacking = CONFIG_FILE if weights else "safetensors or PyTorch weights"
        raise HubError(
            f"{name!r} on {endpoint} has no {lacking}; it holds {', '.join(sorted(files)[:12]) or 'nothing'}"
        )

    def get(file_name: str, at: str | None) -> Path:
        try:
            had = isinstance(try_to_load_from_cache(name, file_name, cache_dir=cache, revision=model.commit), str)
            path = Path(
                hf_hub_download(
                    name,
                    file_name,
                    revision=at,
                    token=token,
                    endpoint=endpoint,
                    cache_dir=cache,
                    etag_timeout=_PATIENCE,
                )
            )
        except HfHubHTTPError as error:
            raise _refusal(error, name, revision, endpoint) from error
        except (HTTPError, OSError) as error:
            raise HubError(
                f"fetching {file_name} of {name!r} from {endpoint} stopped "
                f"({first_line(error.__cause__ or error)}); try again"
            ) from error
        if not had:
            _verify(path, files[file_name])
        return path

    # Fetch the configuration, the tokenizer and the weights.
    # The first by the name of the revision, so that the cache remembers which commit that is; all else by commit.
    folder = get(CONFIG_FILE, revision).parent
    if folder.name != model.commit:
        raise HubError(f"{name!r} changed on {endpoint} while it was fetched; try again")
    for file_name in TOKENIZER_FILES:
        if file_name in files:
            get(file_name, model.commit)
    path = get(weights, model.commit)
    if path.suffix == ".json":
        for shard in sorted(set(read_index(path).values())):
            if shard not in files:
                raise HubError(f"{name!r} on {endpoint} lists the shard {shard} and lacks it; ask its author to add it")
            get(shard, model.commit)
    return folder


def _from_cache(name: str, revision: str | None, cache: Path, reason: str) -> Path:
    """Return the folder of a whole copy in the cache, or raise an error that names what is missing."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [
            path
            for file_name in (CONFIG_FILE, *WEIGHT_FILES)
            if isinstance(path := try_to_load_from_cache(name, file_name, cache_dir=cache, revision=revision), str)
        ]
    except HFValidationError as error:
        raise HubError(f"{name!r} is neither a folder nor a name that a model can have; give one of them") from error
    if not found:
        of = name if revision is None else f"{name} at {revision}"
        lacking = f"the cache {cache} holds no copy of {of}"
    else:
        folder = Path(found[0]).parent
        missing = _missing(folder)
        if not missing:
            return folder
        lacking = f"the copy of {name} in {folder} lacks {', '.join(missing[:3])}"
    raise HubError(
        f"{reason}, and {lacking}; connect once, or give a folder that holds {CONFIG_FILE} and {WEIGHT_FILES[0]}: "
        'from_pretrained("path/to/folder")'
    )


def _missing(folder: Path) -> list[str]:
    missing = [] if (folder / CONFIG_FILE).is_file() else [CONFIG_FILE]
    weights = next((folder / file_name for file_name in WEIGHT_FILES if (folder / file_name).is_file()), None)
    if weights is None:
        return [*missing, "the weights"]
    shards = sorted(set(read_index(weights).values())) if weights.suffix == ".json" else []
    return missing + [shard for shard in shards if not (folder / shard).is_file()]


def _verify(path: Path, file: _HubFile) -> None:
    """Compare a fetched file with the checksum that the hub lists for it (the package compares the length alone)."""
    if file.sha256 is not None:
        digest, expected = hashlib.sha256(), file.sha256
    else:  # a small file, named by git: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        digest, expected = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False), file.blob_id
    matches = False
    try:
        with path.open("rb") as content:
            while piece := content.read(2**20):
                digest.update(piece)
        matches = digest.hexdigest() == expected
    finally:  # on Ctrl-C too: what is not verified is not left for the next call to trust
        if not matches:
            _remove(path)
    if not matches:
        raise HubError(
            f"{file.name} does not have the hub's checksum ({digest.hexdigest()} for {expected}); "
            f"it was removed from {path.parent}: try again"
        )


def _remove(path: Path) -> None:
    """Unlink a file of the cache and all that it links to: the blob, and the store that repositories share."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _refusal(error: Exception, name: str, revision: str | None, endpoint: str) -> HubError:
    """Return the error for a refusal by the hub: what it means, and what to do about it."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    with_token = "pass token=..., or set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{name!r} on {endpoint} has no revision {revision!r}; give a branch, tag or commit it has")
    if isinstance(error, GatedRepoError):
        return HubError(f"{name!r} is gated: accept its terms at {endpoint}/{name}, then {with_token} ({status})")
    if status == 401:  # without a valid token the hub answers this for models that do not exist, too
        return HubError(f"{endpoint} has no {name!r}, or it is private: check the name, or {with_token} (401)")
    if status == 403:
        return HubError(f"{endpoint} does not let this token read {name!r}: {with_token} of an account that may (403)")
    if status == 404 or isinstance(error, RepositoryNotFoundError):
        return HubError(f"{endpoint} has no model {name!r} (404); check the name, or {with_token} if it is private")
    return HubError(f"{endpoint} refused {name!r} ({first_line(error)}); try again later")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its name if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
