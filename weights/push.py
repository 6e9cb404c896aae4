"""Push a model folder to the hub, in one commit that leaves a whole model there."""

from pathlib import Path
from typing import Any

from ..files import FileError, user_path
from .card import CARD_FILE, card
from .companions import COMPANIONS
from .files.folders import CONFIG_FILE, WEIGHT_FILES, read_index
from .files.hub import HubError, first_line
from .files.tensors import check_finite
from .files.write import SHARDS
from .sources import open_source, resolve

__all__ = ["model_files", "push_to_hub"]


def push_to_hub(
    folder: str | Path,
    name: str,
    *,
    private: bool | None = None,
    message: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Push a model folder to the hub and return the address of the commit.

    The repository is made if it does not exist. One commit adds the model, its tokenizer and its card, and deletes the
    files of another model that was there, so that no reader gets a mixture of two.

    Args:
        folder: a folder in transformers' format, or a training run's folder, which stands for its ``final`` model.
        name: ``"owner/name"``, or ``"name"`` for a repository of the token's owner.
        private: make a new repository private (default: as the owner's account is set).
        message: of the commit.
        token: may write to the repository; ``None`` takes the one that ``hf auth login`` or ``HF_TOKEN`` gave.
        endpoint: address of the hub, in place of ``HF_ENDPOINT``'s.

    Raises:
        FileError: the folder holds no model in transformers' format, or a damaged one.
        WeightsError: the weights do not make a GPT-2.
        HubError: the hub cannot be reached, or refuses; the message has the reason and the fix.

    Example:
        >>> push_to_hub("runs/no-such-run", "me/stories")
        Traceback (most recent call last):
        gptladder.files.FileError: runs/no-such-run: there is no such folder; give a model's folder or a run's
    """
    files = model_files(folder)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # httpx's in huggingface_hub 1, httpx2's in 2 # pyright: ignore[reportPrivateImportUsage]
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    api = HfApi(endpoint=endpoint, token=token)
    try:
        whole_name = api.create_repo(name, private=private, exist_ok=True).repo_id
        return _commit(api, whole_name, files, message or f"Push {Path(folder).name}")
    except HFValidationError as error:
        raise HubError(f"{name!r} is not a name that a model can have; give owner/name") from error
    except LocalTokenNotFoundError as error:
        raise HubError(_NO_TOKEN.format(endpoint=api.endpoint, name=name, why="there is no token")) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            why = f"the token may not write there ({status})" if status == 403 else "there is no valid token (401)"
            raise HubError(_NO_TOKEN.format(endpoint=api.endpoint, name=name, why=why)) from error
        raise HubError(f"{api.endpoint} refused {name!r} ({first_line(error)}); nothing was pushed") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{api.endpoint} was not asked (HF_HUB_OFFLINE is set); nothing was pushed") from error
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: what huggingface_hub raises around an upload
        reason = first_line(error.__cause__ or error)
        raise HubError(f"pushing to {api.endpoint} failed ({reason}); nothing was pushed") from error


_NO_TOKEN = "pushing {name!r} to {endpoint} needs a token that may write, and {why}: hf auth login, or set HF_TOKEN"


def model_files(folder: str | Path) -> dict[str, Path | bytes]:
    """Return the files of a model folder that belong on the hub, by name: config, weights, tokenizer, card.

    The model is opened and its weights are read once, so that no damaged one is pushed. A folder without a card gets a
    short one.

    Raises:
        FileError, WeightsError: as for `push_to_hub`.
    """
    path = user_path(folder)
    if not path.is_dir():
        raise FileError(f"{folder}: there is no such folder; give a model's folder or a run's")
    path = resolve(path)
    source = open_source(path)
    if source.kind != "hf":
        raise FileError(
            f"{path}: is not in transformers' format, which the hub's users read; convert it first: "
            f"gptladder convert {path} NEW-FOLDER --to hf"
        )
    check_finite(source.state, path)
    weights = next(name for name in WEIGHT_FILES if (path / name).exists())
    names = [CONFIG_FILE, weights, *(name for name in (*COMPANIONS, CARD_FILE) if (path / name).exists())]
    if weights.endswith(".json"):
        names += sorted(set(read_index(path / weights).values()))
    files: dict[str, Path | bytes] = {name: path / name for name in names}
    if CARD_FILE not in files:
        files[CARD_FILE] = card(f"# {path.name}\n\nA GPT-2 saved by gptladder; transformers reads it too.").encode()
    return files


def _commit(api: Any, name: str, files: dict[str, Path | bytes], message: str) -> str:
    """Add the files, and delete what another model has left: a reader would prefer some of it to the new files."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = [Path(file) for file in api.list_repo_files(name)]
    old = {*WEIGHT_FILES, *COMPANIONS}
    stale = [
        str(file)
        for file in there
        if str(file) not in files and (str(file) in old or any(file.match(pattern) for pattern in SHARDS))
    ]
    operations: list[Any] = [CommitOperationDelete(path_in_repo=file) for file in stale]
    operations += [CommitOperationAdd(path_in_repo=file, path_or_fileobj=content) for file, content in files.items()]
    return str(api.create_commit(name, operations, commit_message=message).commit_url)
