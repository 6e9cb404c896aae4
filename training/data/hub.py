"""Download the text of TinyStories from the hub, or find it in the hub's cache on this machine."""

import os
from pathlib import Path

from ...tokenizer import OfflineError, answer_within

__all__ = ["tinystories_file"]

_SECONDS_TO_ANSWER = 3.0  # a run may ask two hosts, and must report within 10 seconds that it is offline


def tinystories_file(
    file: str = "TinyStories-train.txt",
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
) -> Path:
    """Return the path of a text file of TinyStories, and download it if it is not in the hub's cache.

    An interrupted download continues where it stopped.

    Args:
        file: name of the file in the data set.
        cache_dir: the hub's cache (default: that of huggingface_hub).
        endpoint: the hub's address (default: that of huggingface_hub).

    Raises:
        OfflineError: the file is not in the cache, and the hub does not answer; raised within 10 seconds.
        ConnectionError: the download was interrupted.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = {"repo_id": "roneneldan/TinyStories", "filename": file, "repo_type": "dataset"}
    where = {"cache_dir": cache_dir, "endpoint": endpoint}
    try:
        return Path(hf_hub_download(**name, **where, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    url = hf_hub_url(**name, endpoint=endpoint)
    try:
        answer_within(_SECONDS_TO_ANSWER, lambda: get_hf_file_metadata(url, timeout=_SECONDS_TO_ANSWER))
    except Exception as error:  # the hub's client raises the errors of whichever HTTP library it is built on
        raise OfflineError(
            f"TinyStories is not in the hub's cache and {url} does not answer ({type(error).__name__})"
        ) from None
    try:
        return Path(hf_hub_download(**name, **where))
    except Exception as error:
        raise ConnectionError(f"fetching {url} broke off ({error}); run it again to continue") from None
