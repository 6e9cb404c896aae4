"""The tokenizer files of a model folder, read as transformers reads them, and guarded against damaged ones.

``tokenizer.json`` is the ``tokenizers`` package's own file and is read by it. Beside it, and beside the older
``vocab.json`` and ``merges.txt``, stand files of transformers that change what the package reads: the class in
``tokenizer_config.json``, and added and special tokens in up to three files. What is done with them here is what
``AutoTokenizer`` of transformers 5 does (``PreTrainedTokenizerBase._from_pretrained``, ``TokenizersBackend.__init__``,
``GPT2Tokenizer.__init__``).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors

from ..files import MAX_JSON_BYTES, FileError, file_in, first_sentence, listed, parse_json, read_bytes, read_json
from .base import END_OF_TEXT, MAX_ID
from .special import SpecialTokens

__all__ = ["has_tokenizer", "read_folder"]

MAX_TOKENIZER_BYTES = 64_000_000
"""Largest ``tokenizer.json`` or ``vocab.json`` that is read. Those of 250,000 tokens have about 20 MB."""

_CHAT = "chat_template.jinja"

_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "config.json", "vocab.json", "merges.txt"),
    *("added_tokens.json", "special_tokens_map.json", _CHAT),
)
"""The files of a model on the hub that its tokenizer is read from."""

_FLAGS = ("add_prefix_space", "split_special_tokens", "clean_up_tokenization_spaces", "add_bos_token", "add_eos_token")
_SIDES = ("padding_side", "truncation_side")
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "tokenizer_class": ("text", lambda value: isinstance(value, str)),
    "model_max_length": ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    **{name: ("true or false", lambda value: isinstance(value, bool)) for name in _FLAGS},
    **{name: ("left or right", lambda value: value in ("left", "right")) for name in _SIDES},
}
_ANY_CLASS = {None, "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend"}


def has_tokenizer(folder: Path) -> bool:
    """Tell whether there are files of a tokenizer in a folder."""
    return (folder / "tokenizer.json").exists() or _older_files(folder) is not None


def read_folder(folder: Path, *, as_written: bool = False) -> tuple[Backend, dict[str, Any]]:
    """Return the tokenizer of a folder, and the fields of its ``tokenizer_config.json``.

    Among the fields are the special tokens, as text, wherever they were written.

    Args:
        as_written: take ``tokenizer.json`` as it is, whatever class the folder names.

    Raises:
        FileError: no tokenizer in the folder, or one that is damaged or cannot be read.
    """
    folder = Path(folder)
    if not has_tokenizer(folder):
        why = "" if folder.is_dir() else "is a file, so it " if folder.exists() else "does not exist, so it "
        raise FileError(
            f"no tokenizer in {folder}: it {why}has neither tokenizer.json nor both of vocab.json and merges.txt; give "
            "a folder that has them"
        )
    names = ("tokenizer_config.json", "config.json", "special_tokens_map.json", "added_tokens.json")
    config, model, special_map, added = (_optional(folder, name) for name in names)
    _check_fields(folder / "tokenizer_config.json", config)
    if (folder / _CHAT).exists():  # transformers 5 writes it beside the configuration, and 4 into it
        with refusing(folder / _CHAT):
            config["chat_template"] = read_bytes(file_in(folder, _CHAT), limit=MAX_JSON_BYTES).decode()
    _check_fields(folder / "config.json", {"tokenizer_class": model.get("tokenizer_class")})
    if "auto_map" in config and not as_written:
        raise FileError(f"{folder / 'tokenizer_config.json'}: names code of its own (auto_map), which is not run here")
    kind = _class_name(config, model)
    whole = folder / "tokenizer.json"
    if whole.exists():
        backend, pipeline = _read_pipeline(folder)
        if kind == "GPT2Tokenizer" and not as_written:
            _make_gpt2s(backend, config, whole)
    else:
        pipeline = None
        if kind not in {"GPT2Tokenizer", *_ANY_CLASS}:
            raise FileError(
                f"{folder}: has the files of a {kind} but no tokenizer.json; write it with "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        kind = "GPT2Tokenizer"
        backend = _read_older(folder, config)
    with refusing(f"{folder}: its added and special tokens"):
        tokens = SpecialTokens(config, special_map, added, pipeline, gpt2=kind == "GPT2Tokenizer" and not as_written)
        if not _has_room(tokens, backend, model):
            tokens.drop_defaults()
        tokens.add_to(backend)
        if pipeline is None:
            _add_template(backend, config, tokens)
    _check_ids(backend, folder, tokens, pipeline)
    fields = {name: value for name, value in config.items() if not name.endswith("_token")}
    fields |= {name: str(token) for name, token in tokens.named.items()}
    for name in ("bos", "eos"):  # a model's config may name what its tokenizer does not
        token = _added_token(backend, model.get(f"{name}_token_id"))
        if token is not None:
            fields.setdefault(f"{name}_token", token)
    return backend, fields


@contextmanager
def refusing(what: str | Path) -> Iterator[None]:
    """Turn what another package raises about a file, panics among it, into a `FileError`."""
    try:
        yield
    except FileError:
        raise
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the package's Rust code is no Exception
        raise FileError(f"{what} cannot be used ({first_sentence(error)}); fetch it or save it again") from None


def _older_files(folder: Path) -> tuple[str, str] | None:
    """Return the names of the files with the vocabulary and the merges, or None if they are not both there."""
    return next((pair for pair in _PAIRS if all((folder / name).exists() for name in pair)), None)


def _optional(folder: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if there is no such file."""
    return read_json(file_in(folder, name)) if (folder / name).exists() else {}


def _class_name(config: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """Return the name of the class that transformers reads the folder with, without "Fast"."""
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if not name and model.get("model_type") == "gpt2":
        return "GPT2Tokenizer"
    return name.removesuffix("Fast") if name else None


def _read_pipeline(folder: Path) -> tuple[Backend, dict[str, Any]]:
    """Return the tokenizer in ``tokenizer.json``, and the content of the file."""
    path = file_in(folder, "tokenizer.json")
    content = read_bytes(path, limit=MAX_TOKENIZER_BYTES)
    pipeline = parse_json(path, content)
    _check_size(path, pipeline.get("model"))
    with refusing(path):
        backend = Backend.from_str(content.decode())
    if not isinstance(pipeline.get("added_tokens"), list):
        raise FileError(f"{path}: has no list of added_tokens; fetch it or save it again")
    if isinstance(backend.model, models.BPE) and backend.model.dropout:
        raise FileError(f"{path}: drops merges at random (dropout), so a text has no certain ids; set dropout to null")
    return backend, pipeline


def _make_gpt2s(backend: Backend, config: Mapping[str, Any], path: Path) -> None:
    """Give a backend the parts that transformers' ``GPT2Tokenizer`` builds itself, whatever the file holds."""
    model = backend.model
    if not isinstance(model, models.BPE):
        raise FileError(
            f"{path}: holds a {type(model).__name__} model, but its folder asks for GPT2Tokenizer; put "
            '"tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json'
        )
    model.unk_token = None
    model.continuing_subword_prefix = model.end_of_word_suffix = ""
    model.fuse_unk = model.byte_fallback = model.ignore_merges = False
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space") or False)
    backend.decoder = decoders.ByteLevel()


def _check_fields(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse fields of ``tokenizer_config.json`` of a wrong type, which transformers refuses or fails on later."""
    for name, (expected, allowed) in _FIELDS.items():
        if (value := config.get(name)) is not None and not allowed(value):
            raise FileError(f"{path}: {name} is {listed([value])}, and must be {expected}; fetch it or save it again")


def _check_size(path: Path, model: object) -> None:
    """Refuse an id so high that the package would count up to it for minutes."""
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = [i for i in vocab.values() if isinstance(i, int)] if isinstance(vocab, dict) else []
    if max(ids, default=0) > MAX_ID:
        raise FileError(f"{path}: gives a token the id {max(ids)}, and ids must be at most {MAX_ID:,}; fetch it again")


def _read_older(folder: Path, config: Mapping[str, Any]) -> Backend:
    names = _older_files(folder)
    assert names is not None
    vocab, merges = (file_in(folder, name) for name in names)
    _check_size(vocab, {"vocab": read_json(vocab, limit=MAX_TOKENIZER_BYTES)})
    read_bytes(merges, limit=MAX_TOKENIZER_BYTES)
    with refusing(vocab):
        pairs = models.BPE.read_file(str(vocab), str(merges))
        model = models.BPE(*pairs, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
        backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space") or False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _has_room(tokens: SpecialTokens, backend: Backend, model: Mapping[str, Any]) -> bool:
    """Tell whether the model has a row for the token that ``GPT2Tokenizer`` adds if no file names one."""
    size = model.get("vocab_size")
    known = backend.token_to_id(END_OF_TEXT) is not None
    return known or not isinstance(size, int) or backend.get_vocab_size() < size


def _add_template(backend: Backend, config: Mapping[str, Any], tokens: SpecialTokens) -> None:
    """Put ``bos_token`` before each text and ``eos_token`` after it, if the older files ask for it."""
    around = [str(tokens.named[f"{name}_token"]) if config.get(f"add_{name}_token") else "" for name in ("bos", "eos")]
    if any(around):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{around[0]} $A {around[1]}".split(),
            special_tokens=[(token, backend.token_to_id(token)) for token in sorted({*around} - {""})],
        )


def _check_ids(backend: Backend, folder: Path, tokens: SpecialTokens, pipeline: Mapping[str, Any] | None) -> None:
    """Refuse a folder whose files give tokens other ids than the package gives them, or one id to two tokens."""
    declared = {str(token): i for i, token in tokens.added.items()}
    for token in pipeline["added_tokens"] if pipeline is not None else []:
        declared[token["content"]] = token["id"]
    for token, i in declared.items():
        if (given := backend.token_to_id(token)) != i:
            raise FileError(
                f"{folder}: its files give {listed([token])} the id {i}, and transformers gives it {given}; ids must "
                "go on without a gap behind the vocabulary: save the tokenizer again"
            )
    vocab = backend.get_vocab(with_added_tokens=True)
    if not vocab:
        raise FileError(f"{folder}: its tokenizer has no token; fetch it or save it again")
    if len(set(vocab.values())) < len(vocab):
        seen: dict[int, str] = {}
        twice = next(pair for token, i in vocab.items() if (pair := (seen.setdefault(i, token), token))[0] != token)
        raise FileError(f"{folder}: its tokenizer gives {listed(twice)} the same id; fetch it or save it again")


def _added_token(backend: Backend, i: object) -> str | None:
    """Return the added token that has an id, or None if there is none."""
    token = backend.get_added_tokens_decoder().get(i) if isinstance(i, int) else None
    return None if token is None else token.content
