"""Sizes by the words that their names are made of: a count or a measure, and what is counted or measured.

A name is understood if each of its words is.
"""

import re

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|.")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_COUNTS = _set("n num number no nb nr count")
_WIDTHS = _set("d dim dims dimension dimensions size sizes width channels features units")
_LENGTHS = _set("len length size max maximum window")
_SIDES = {"in": "in", "input": "in", "inputs": "in", "out": "out", "output": "out", "outputs": "out"}
_QKV = _set("q k v kv qk qkv query key value")
_ENDS = _set("src tgt trg source target enc dec encoder decoder")

_HEADS = _set("head heads")
_GROUPED = _set("kv key value group groups")
_VOCABULARY = _set("vocab vocabulary vocabs")
_MLP = _set("ff ffn ffw ffwd mlp feed forward feedforward intermediate inner")
_CONTEXT = _set("ctx context seq sequence sequences pos position positions positional sentence window")
_TOKENS = _set("token tokens")
_LAYERS = _set("layer layers block blocks decoder decoders transformer transformers transfomer dec")
_MODEL = _set("emb embd embed embeds embedded embedding embeddings model residual resid")
_BESIDE_CONTEXT = _set("encoding encodings embedding embeddings embed emb")


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name) if word != "_"]


def by_words(name: str) -> str | None:
    """Return our name for a size whose name is made of known words; None if it is not.

    Example:
        >>> by_words("embedded_dim"), by_words("layer_count"), by_words("maxInputTokens"), by_words("batch_size")
        ('d_model', 'n_layers', 'n_ctx', None)
    """
    words = set(_words(name))
    counts, widths, lengths = words & _COUNTS, words & _WIDTHS, words & _LENGTHS
    left = words - _COUNTS - _WIDTHS - _LENGTHS - _SIDES.keys() - {"of", "per", "total"}

    def is_of(subject: frozenset[str], *beside: frozenset[str]) -> bool:
        return bool(left & subject) and left <= subject.union(*beside)

    if is_of(_HEADS, _GROUPED, frozenset({"attention", "attn"})):
        if widths - {"d"} or ("d" in words and not counts):
            return "d_head"
        return ("n_kv_heads" if left & _GROUPED else "n_heads") if counts else None
    if is_of(_VOCABULARY, _TOKENS, _ENDS) and counts | widths | lengths:
        return "d_vocab"
    if is_of_qkv(name):
        return "d_head"
    if is_of(_MLP, frozenset({"hidden", "layer"})) and counts | widths and ("feed" in left) == ("forward" in left):
        return "d_mlp"
    if is_of(_CONTEXT, _TOKENS, _BESIDE_CONTEXT) and (lengths or counts) and not widths - {"size"}:
        return "n_ctx"
    if is_of(_TOKENS) and words & {"max", "maximum"}:
        return "n_ctx"
    if is_of(_LAYERS) and counts and not widths and not lengths:
        return "n_layers"
    if is_of(_LAYERS) and len(left) > 1 and left & {"layers", "blocks"} and not widths and not lengths:
        return "n_layers"
    if is_of(_MODEL, _TOKENS) and counts | widths and not words & {"max", "len", "length"}:
        return "d_model"
    return None


def side(name: str) -> str:
    """Return whether a name is that of the width of a layer's input or of its output: ``in``, ``out``, or empty.

    Example:
        >>> side("input_dim"), side("dim_out"), side("in_out_dim"), side("output")
        ('in', 'out', 'in', '')
    """
    words = set(_words(name))
    sides = {_SIDES[word] for word in words & _SIDES.keys()}
    rest = words - _SIDES.keys() - _WIDTHS - _QKV - _MODEL - {"n"}
    if not sides or rest or not words & (_WIDTHS | {"n"}):
        return ""
    return "in" if "in" in sides else "out"


def is_of_qkv(name: str) -> bool:
    """Return whether a name is that of the width of queries, keys or values: of a head's, or of all heads' together.

    Example:
        >>> is_of_qkv("query_key_size"), is_of_qkv("value_dim"), is_of_qkv("key")
        (True, True, False)
    """
    words = set(_words(name))
    return bool(words & _QKV) and bool(words & _WIDTHS) and words <= _QKV | _WIDTHS
