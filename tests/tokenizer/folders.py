"""Tokenizer folders as users bring them: of every kind that transformers 4 and 5 and ``tokenizers`` write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import (
    AddedToken,
    ByteLevelBPETokenizer,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gptladder.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer

from .drawn import PIECES, texts

LANGUAGES = {
    "english": "the cat sat on the mat, and the dog's ball isn't there; it'll rain in New York 2024. PersonA has ",
    "chinese": "狐狸和鹅在睡觉。他们做梦，梦见 2024 年的雪。日本語もある。The cat sat.\n",
    "mixed": "Ünïcödé naïve café — ﬁne!\tשלום مرحبا हिन्दी 🙂👍🏽 x = foo(bar[3]);\r\n  return ½ € <unk>\n",
}


def corpus(language: str) -> list[str]:
    """Return lines to learn a vocabulary from."""
    text = LANGUAGES[language]
    return [text[i:] + text[:i] for i in range(len(text))]


def write_json(path: Path, value: Any) -> None:
    """Write a value as a JSON file."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def model_config(folder: Path, **fields: Any) -> None:
    """Write the ``config.json`` of a GPT-2, which tells transformers how to read the folder."""
    write_json(folder / "config.json", {"model_type": "gpt2", **fields})


def older_files(source: Path, folder: Path) -> None:
    """Write the ``vocab.json`` and ``merges.txt`` of a ``tokenizer.json``."""
    model = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write_json(folder / "vocab.json", model["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def trained(
    model: Any,
    trainer: Any,
    *,
    language: str = "english",
    normalizer: Any = None,
    words: Any = None,
    decoder: Any = None,
    template: Any = None,
) -> Tokenizer:
    """Return a tokenizer of the ``tokenizers`` package that has learnt a vocabulary."""
    backend = Tokenizer(model)
    if normalizer is not None:
        backend.normalizer = normalizer
    if words is not None:
        backend.pre_tokenizer = words
    if decoder is not None:
        backend.decoder = decoder
    backend.train_from_iterator(corpus(language), trainer)
    if template is not None:
        backend.post_processor = template(backend)
    return backend


def byte_level(
    *,
    normalizer: Any = None,
    template: Any = None,
    prefix: bool = False,
    special: tuple[str, ...] = (END_OF_TEXT,),
    **kw: Any,
) -> Tokenizer:
    """Return a byte-level BPE with 400 tokens."""
    return trained(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=list(special),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
        normalizer=normalizer,
        words=pre_tokenizers.ByteLevel(add_prefix_space=prefix),
        decoder=decoders.ByteLevel(),
        template=template,
    )


def around(start: str, end: str) -> Callable[[Tokenizer], Any]:
    """Return what makes the template that puts two tokens around each text."""
    return lambda backend: processors.TemplateProcessing(
        single=f"{start} $A {end}".split(),
        special_tokens=[(t, backend.token_to_id(t)) for t in sorted({start, end} - {""})],
    )


def save(backend: Tokenizer, folder: Path, **roles: Any) -> None:
    """Save a tokenizer as transformers does, with a config of a GPT-2 beside it."""
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)
    model_config(folder)


# The folders, each written by the function of its name.


def gpt2_ours(folder: Path) -> None:
    BPETokenizer.gpt2().save(folder)
    model_config(folder)


def gpt2_published(folder: Path) -> None:
    (folder / "own").mkdir()
    BPETokenizer.gpt2().save(folder / "own")
    older_files(folder / "own", folder)
    model_config(folder)


def published_whole(folder: Path) -> None:
    """The form of GPT-2's published ``tokenizer.json``, of a small vocabulary: the whole one takes seconds to read."""
    tokenizer = BPETokenizer.train(corpus("mixed"), 500)
    tokenizer.save(folder)
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    del data["model"]["type"]
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    data["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    data["added_tokens"][0]["normalized"] = True
    write_json(folder / "tokenizer.json", data)
    write_json(folder / "tokenizer_config.json", {"model_max_length": 1024})
    model_config(folder, vocab_size=tokenizer.n_vocab)


def fast_added(folder: Path) -> None:
    (folder / "own").mkdir()
    BPETokenizer.train(corpus("mixed"), 500).save(folder / "own")
    library: Any = transformers  # the types of transformers 5 lack this class
    theirs = library.GPT2TokenizerFast.from_pretrained(folder / "own", split_special_tokens=False)
    theirs.add_tokens(["covid19", "PersonA", "New York", "foo", "foobar"])
    theirs.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<|user|>", "<|bot|>"]})
    theirs.save_pretrained(folder)
    model_config(folder)


def bpe_ours(folder: Path) -> None:
    BPETokenizer.train(corpus("english"), 400).save(folder)
    model_config(folder)


def bpe_chinese(folder: Path) -> None:
    BPETokenizer.train(corpus("chinese"), 400).save(folder)
    model_config(folder)


def bpe_mixed_older(folder: Path) -> None:
    theirs = ByteLevelBPETokenizer()
    theirs.train_from_iterator(corpus("mixed"), vocab_size=500, special_tokens=[END_OF_TEXT], show_progress=False)
    theirs.save_model(str(folder))
    model_config(folder)


def bpe_strips(folder: Path) -> None:
    backend = byte_level()
    backend.add_tokens([AddedToken("foo", lstrip=True), AddedToken("bar", rstrip=True)])
    backend.add_tokens([AddedToken("cat", single_word=True), AddedToken("New York", normalized=False)])
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    save(backend, folder, eos_token=END_OF_TEXT, mask_token=AddedToken("<mask>", lstrip=True, rstrip=True))


def v4_slow(folder: Path) -> None:
    """What ``GPT2Tokenizer`` of transformers 4 saved after ``add_tokens`` and ``add_special_tokens``."""
    bpe_mixed_older(folder)
    size = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    names = ["<pad>", "<|user|>", "PersonA", "covid19"]
    write_json(folder / "added_tokens.json", {name: size + i for i, name in enumerate(names)})
    eot = {"content": END_OF_TEXT, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), eot)
    write_json(
        folder / "special_tokens_map.json", {**roles, "pad_token": "<pad>", "additional_special_tokens": ["<|user|>"]}
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "errors": "replace",
            "model_max_length": 256,
            "pad_token": "<pad>",
            "tokenizer_class": "GPT2Tokenizer",
            **{name: {"__type": "AddedToken", **eot} for name in roles},
        },
    )


def v4_bos(folder: Path) -> None:
    bpe_mixed_older(folder)
    write_json(folder / "tokenizer_config.json", {"add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"})


def v4_fast(folder: Path) -> None:
    """What ``GPT2TokenizerFast`` of transformers 4.34 to 4.57 saved."""
    backend = byte_level()
    backend.add_special_tokens([AddedToken("<pad>", normalized=False), AddedToken("<|user|>", normalized=False)])
    backend.add_tokens(["PersonA"])
    backend.save(str(folder / "tokenizer.json"))
    backend.model.save(str(folder))
    added = json.loads(backend.to_str())["added_tokens"]
    decoder = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added}
    write_json(folder / "added_tokens.json", {t["content"]: t["id"] for t in added if t["content"] != END_OF_TEXT})
    roles = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT, "pad_token": "<pad>"}
    write_json(folder / "special_tokens_map.json", {**roles, "additional_special_tokens": ["<|user|>"]})
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": decoder,
            "additional_special_tokens": ["<|user|>"],
            "clean_up_tokenization_spaces": True,
            "model_max_length": 1000000000000000019884624838656,
            "tokenizer_class": "GPT2Tokenizer",
            **roles,
        },
    )
    model_config(folder)


def v5_again(folder: Path) -> None:
    """A folder of transformers 4, read and saved by transformers 5."""
    (folder / "v4").mkdir()
    v4_slow(folder / "v4")
    AutoTokenizer.from_pretrained(folder / "v4").save_pretrained(folder)
    model_config(folder)


def characters(folder: Path) -> None:
    CharTokenizer(alphabet(), end_of_text=True).save(folder)
    model_config(folder)


def characters_again(folder: Path) -> None:
    (folder / "own").mkdir()
    characters(folder / "own")
    AutoTokenizer.from_pretrained(folder / "own").save_pretrained(folder)


def characters_unknown(folder: Path) -> None:
    vocab = {c: i for i, c in enumerate(["[UNK]", *"abcdefghijklmnopqrstuvwxyz .,!\n"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"."), behavior="isolated")
    backend.decoder = decoders.Fuse()
    save(backend, folder, unk_token="[UNK]")


def alphabet() -> list[str]:
    """Return all characters of the pieces, and of the texts that tests draw with seed 0."""
    return sorted(set("".join(piece for group in PIECES for piece in group) + "".join(texts(400, 0))))


def nfc(folder: Path) -> None:
    save(byte_level(normalizer=normalizers.NFC()), folder, eos_token=END_OF_TEXT)


def nfkc_lowercase(folder: Path) -> None:
    save(byte_level(normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])), folder)


def stripped(folder: Path) -> None:
    save(byte_level(normalizer=normalizers.Sequence([normalizers.Strip(), normalizers.StripAccents()])), folder)


def prefix_space(folder: Path) -> None:
    save(byte_level(prefix=True), folder, eos_token=END_OF_TEXT)


def template(folder: Path) -> None:
    backend = byte_level(template=around("<s>", "</s>"), special=("<s>", "</s>", "<pad>"))
    save(backend, folder, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def template_before(folder: Path) -> None:
    save(byte_level(template=around(END_OF_TEXT, "")), folder, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def roberta(folder: Path) -> None:
    def between(backend: Tokenizer) -> Any:
        ids = backend.get_vocab()
        return processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))

    save(byte_level(template=between, special=("<s>", "</s>")), folder, bos_token="<s>", eos_token="</s>")


def missing_bytes(folder: Path) -> None:
    backend = trained(
        models.BPE(unk_token="[UNK]"),
        trainers.BpeTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False),
        words=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
    )
    save(backend, folder, unk_token="[UNK]")


def whitespace_bpe(folder: Path) -> None:
    backend = trained(
        models.BPE(unk_token="[UNK]"),
        trainers.BpeTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False),
        words=pre_tokenizers.Whitespace(),
        template=around("[CLS]", "[SEP]"),
        language="mixed",
    )
    save(backend, folder, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def word_pieces(folder: Path) -> None:
    backend = trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False),
        normalizer=normalizers.BertNormalizer(lowercase=True),
        words=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
        template=around("[CLS]", "[SEP]"),
    )
    save(backend, folder, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def unigram_metaspace(folder: Path) -> None:
    backend = trained(
        models.Unigram(),
        trainers.UnigramTrainer(
            vocab_size=250, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
        normalizer=normalizers.NFKC(),
        words=pre_tokenizers.Metaspace(prepend_scheme="first"),
        decoder=decoders.Metaspace(prepend_scheme="first"),
        template=around("", "</s>"),
    )
    save(backend, folder, eos_token="</s>", unk_token="<unk>")


def llama_like(folder: Path) -> None:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = trained(
        models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False),
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
        template=around("<s>", ""),
    )
    data = json.loads(backend.to_str())  # bytes are ordinary tokens, not added ones
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in bytes_]
    save(Tokenizer.from_str(json.dumps(data)), folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gpt4_words(folder: Path) -> None:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    backend = trained(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
        ),
        words=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        decoder=decoders.ByteLevel(),
        template=lambda backend: processors.ByteLevel(trim_offsets=False),
        language="mixed",
    )
    backend.add_special_tokens([END_OF_TEXT])
    save(backend, folder, eos_token=END_OF_TEXT)


def digits_first(folder: Path) -> None:
    backend = byte_level()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    save(backend, folder, eos_token=END_OF_TEXT)


def clip_like(folder: Path) -> None:
    backend = trained(
        models.BPE(unk_token=END_OF_TEXT, end_of_word_suffix="</w>"),
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=[END_OF_TEXT], end_of_word_suffix="</w>", show_progress=False
        ),
        normalizer=normalizers.Lowercase(),
        words=pre_tokenizers.WhitespaceSplit(),
        decoder=decoders.BPEDecoder(suffix="</w>"),
    )
    save(backend, folder, unk_token=END_OF_TEXT, eos_token=END_OF_TEXT)


GPT2S = [gpt2_ours, gpt2_published, published_whole, fast_added]
TRAINED = [bpe_ours, bpe_chinese, bpe_mixed_older, v4_slow, v4_bos, v4_fast, v5_again, bpe_strips, missing_bytes]
CHARACTERS = [characters, characters_again, characters_unknown]
NORMALISERS = [nfc, nfkc_lowercase, stripped, prefix_space, unigram_metaspace, llama_like, word_pieces]
OTHERS = [template, template_before, roberta, whitespace_bpe, gpt4_words, digits_first, clip_like]
FOLDERS: dict[str, Callable[[Path], None]] = {
    make.__name__: make for make in (*GPT2S, *TRAINED, *CHARACTERS, *NORMALISERS, *OTHERS)
}
