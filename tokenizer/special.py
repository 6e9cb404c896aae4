"""Added and special tokens, from the files of transformers that name them, as transformers 5 joins them."""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from .base import END_OF_TEXT

__all__ = ["SpecialTokens"]

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TOKEN_FIELDS = {"content", "single_word", "lstrip", "rstrip", "normalized", "special"}
_LISTS = ("extra_special_tokens", "additional_special_tokens")
_GPT2_DEFAULTS = ("unk_token", "bos_token", "eos_token")


class SpecialTokens:
    """The tokens that a folder adds to its vocabulary, and the roles of some of them.

    Args:
        config: the fields of ``tokenizer_config.json``.
        special_map: the fields of ``special_tokens_map.json``, which transformers 4 wrote.
        added: the tokens of ``added_tokens.json`` and their ids, which transformers 4 wrote beside ``vocab.json``.
        pipeline: the content of ``tokenizer.json``, if there is one.
        gpt2: name ``<|endoftext|>`` where the files do not name a token, as ``GPT2Tokenizer`` does.

    Attributes:
        named: role, such as ``eos_token`` -> token.
        added: id -> token, for the tokens whose ids the files state.

    Raises:
        TypeError, ValueError: a field of the wrong type.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        special_map: Mapping[str, Any],
        added: Mapping[str, Any],
        pipeline: Mapping[str, Any] | None,
        *,
        gpt2: bool,
    ) -> None:
        fields = dict(config)
        with_ids = "added_tokens_decoder" in config
        if not with_ids:
            for name, value in special_map.items():
                if not name.endswith("_token") and name not in _LISTS:
                    raise ValueError(f"{name!r:.80} in special_tokens_map.json is no role of a token")
                fields[name] = _added(value, special=True) if isinstance(value, dict) and name not in _LISTS else value
        extra = fields.get("extra_special_tokens") or fields.get("additional_special_tokens") or []
        for name in _LISTS:
            if not isinstance(fields.get(name), list | dict | None):
                raise TypeError(f"{name} is {fields[name]!r:.80}, and must be a list of tokens")
        roles = extra if isinstance(extra, dict) else {}
        self._extra = [_token(token) for token in extra] if isinstance(extra, list) else []
        self.named: dict[str, str | AddedToken] = {}
        for name, value in {**fields, **roles}.items():
            is_role = name in _NAMES or name in roles
            if (is_role and value is not None) or (
                name.endswith("_token") and isinstance(value, str | dict | AddedToken)
            ):
                self.named[name] = _token(value)
        self._defaults = [name for name in _GPT2_DEFAULTS if gpt2 and name not in fields]
        self.named |= dict.fromkeys(self._defaults, END_OF_TEXT)

        self.added: dict[int, AddedToken] = {}
        if with_ids:
            for i, token in _object(config["added_tokens_decoder"], "added_tokens_decoder").items():
                self.added[int(i)] = _added(token)
        else:
            special = {str(token) for token in [*self.named.values(), *self._extra]}
            # transformers 5 overlooks those in `special_tokens_map.json` here: it matches them after normalising, and
            # would not take them as text in `split_special_tokens`, which is not followed.
            early = special - {str(token) for token in fields.get("additional_special_tokens") or []}
            for text, i in added.items():
                if not isinstance(i, int) or isinstance(i, bool):
                    raise TypeError(f"the id of {text!r:.80} is {i!r:.80}, and must be a whole number")
                self.added[i] = AddedToken(text, normalized=text not in early, special=text in special)
            for token in (pipeline or {}).get("added_tokens", []):
                self.added[token["id"]] = _added({name: value for name, value in token.items() if name != "id"})
        by_text = {str(token): token for token in self.added.values()}
        self.named = {name: by_text.get(str(token), token) for name, token in self.named.items()}

    def drop_defaults(self) -> None:
        """Forget the tokens that no file names."""
        for name in self._defaults:
            del self.named[name]

    def add_to(self, backend: Backend) -> None:
        """Add the tokens to a tokenizer, in the order in which transformers does."""
        new: list[str | AddedToken] = [token for _, token in sorted(self.added.items())]
        known = {token.content for token in backend.get_added_tokens_decoder().values()} | {str(token) for token in new}
        roles = {str(token) for token in self.named.values()}
        order = [name for name in _NAMES if name in self.named] + [name for name in self.named if name not in _NAMES]
        for token in [*(self.named[name] for name in order), *self._extra]:
            if str(token) not in known and token not in new:
                new.append(token)
        tokens = [AddedToken(token, special=True) if isinstance(token, str) else token for token in new]
        for token in tokens:
            if not token.special and str(token) in roles:
                token.special = True
        backend.add_tokens(tokens)


def _token(value: Any) -> str | AddedToken:
    """Return a token that is written as text, or as the fields of an added token."""
    if isinstance(value, str | AddedToken):
        return value
    if _object(value, "a token").get("__type") != "AddedToken":
        raise TypeError(f"a token is {value!r:.80}, and must be text or an object of the type AddedToken")
    return _added(value)


def _added(value: Any, **changes: bool) -> AddedToken:
    fields: dict[str, Any] = {name: field for name, field in _object(value, "a token").items() if name != "__type"}
    if unknown := fields.keys() - _TOKEN_FIELDS:
        raise TypeError(f"a token has the unknown field {min(unknown)!r:.80}")
    return AddedToken(**{**fields, **changes})


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{what} is {value!r:.80}, and must be a JSON object")
    return value
