"""Prompts and texts: any tokenizer is accepted, a text may begin from nothing, and only text is generated."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from gptladder import GPT2, GPT2Config
from gptladder.sampling import PromptLookup, SamplingParams, beam_search, generate, speculate, stream
from gptladder.sampling.text import TextStream, end_tokens, prompt_tokens, vocabulary
from gptladder.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, load_tokenizer

LETTERS = CharTokenizer("abcdefgh ", end_of_text=True)


def model_of(d_vocab: int, n_ctx: int = 32) -> GPT2:
    torch.manual_seed(0)
    return GPT2(GPT2Config(d_vocab=d_vocab, d_model=16, n_layers=1, n_heads=2, n_ctx=n_ctx)).eval()


def words(**ids: int) -> Backend:
    backend = Backend(models.WordLevel(ids, unk_token=next(iter(ids))))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def test_a_text_from_nothing_begins_at_the_end_of_text() -> None:
    model = model_of(LETTERS.n_vocab)
    assert prompt_tokens("", model, LETTERS) == [LETTERS.eot_id]
    assert LETTERS.start_id is not None
    assert generate(model, "", tokenizer=LETTERS, max_new_tokens=5) == generate(
        model, [LETTERS.start_id], tokenizer=LETTERS, max_new_tokens=5
    )
    assert [row.text for row in generate(model, ["", "ab"], tokenizer=LETTERS, max_new_tokens=5)] == [
        generate(model, prompt, tokenizer=LETTERS, max_new_tokens=5)[0].text for prompt in ("", "ab")
    ]
    assert beam_search(model, "", tokenizer=LETTERS, max_new_tokens=3)
    assert speculate(model, "", draft=PromptLookup(), tokenizer=LETTERS, max_new_tokens=3)


def test_a_beginning_of_its_own_goes_before_the_end_of_text() -> None:
    backend = words(a=0, b=1)
    backend.add_special_tokens(["<s>", END_OF_TEXT])
    tokenizer = load_tokenizer(backend)
    assert prompt_tokens("", model_of(4), tokenizer) == [3]
    tokenizer.take_config({"bos_token": "<s>", "eos_token": END_OF_TEXT})
    assert prompt_tokens("", model_of(4), tokenizer) == [2]
    assert prompt_tokens(" \n", model_of(4), tokenizer) == [2]  # a text in which this vocabulary sees nothing


def test_nothing_to_begin_with_is_refused() -> None:
    for prompt, tokenizer in (("", CharTokenizer("ab")), ([], LETTERS)):
        with pytest.raises(ValueError, match="the prompt is empty"):
            prompt_tokens(prompt, model_of(10), tokenizer)


def tokenizers_of(folder: Path) -> dict[str, Any]:
    """Return one tokenizer in every form that a user may have it in."""
    transformers = pytest.importorskip("transformers")
    ours = BPETokenizer.train("the cat sat on the mat " * 9, 270)
    ours.save(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return {
        "ours": ours,
        "folder": folder,
        "name": str(folder),
        "file": folder / "tokenizer.json",
        "transformers": theirs,
        "tokenizers": theirs.backend_tokenizer,
    }


def test_every_form_of_a_tokenizer_is_accepted(tmp_path: Path) -> None:
    forms = tokenizers_of(tmp_path)
    model = model_of(forms["ours"].n_vocab)
    params = SamplingParams(temperature=0)
    for form in forms.values():
        (found,) = generate(model, "the cat", params, tokenizer=form, max_new_tokens=6)
        assert found == generate(model, "the cat", params, tokenizer=forms["ours"], max_new_tokens=6)[0]
        assert [c.token for c in stream(model, "the cat", params, tokenizer=form, max_new_tokens=6)] == found.tokens
        assert beam_search(model, "the cat", tokenizer=form, num_beams=1, max_new_tokens=6)[0].tokens == found.tokens
        speculated = speculate(model, "the cat", params, draft=PromptLookup(), tokenizer=form, max_new_tokens=6)
        assert speculated.tokens == found.tokens


def test_ids_without_text_are_never_generated() -> None:
    backend = words(a=0, b=1, c=6)  # 2 to 5 are no tokens, and the model has rows up to 9
    tokenizer = load_tokenizer(backend)
    assert tokenizer.unused_ids(10) == [2, 3, 4, 5]
    model = model_of(10)
    for row in generate(model, "a", tokenizer=tokenizer, n=40, max_new_tokens=20):
        assert set(row.tokens) <= {0, 1, 6}
        assert row.text == tokenizer.decode(row.tokens)
    assert set(beam_search(model, "a", tokenizer=tokenizer, num_beams=4, max_new_tokens=9)[0].tokens) <= {0, 1, 6}
    drawn = speculate(model, "a", draft=PromptLookup(), tokenizer=tokenizer, max_new_tokens=25)
    assert set(drawn.tokens) <= {0, 1, 6}


def test_a_vocabulary_larger_than_the_model_s_is_refused() -> None:
    with pytest.raises(ValueError, match="ids up to 8 and the model's vocabulary 5 rows, so they do not belong"):
        generate(model_of(5), "ab", tokenizer=LETTERS)
    with pytest.raises(ValueError, match="do not belong together"):
        beam_search(model_of(5), "ab", tokenizer=LETTERS)
    with pytest.raises(ValueError, match="do not belong together"):
        speculate(model_of(5), "ab", draft=PromptLookup(), tokenizer=LETTERS)


def test_special_tokens_that_the_model_has_no_row_for_are_left_alone() -> None:
    # Published folders add "<pad>" to a tokenizer without resizing the model.
    backend = words(a=0, b=1)
    backend.add_special_tokens([END_OF_TEXT])
    tokenizer, model = load_tokenizer(backend), model_of(2)
    assert vocabulary(model, tokenizer) == 2
    assert end_tokens(None, model, tokenizer) == ()
    assert len(generate(model, "a b", tokenizer=tokenizer, max_new_tokens=4)[0].tokens) == 4


def llama_like() -> Backend:
    vocab = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}}
    vocab |= {"▁": 257, "a": 258, "b": 259, "▁a": 260, "中": 261}
    backend = Backend(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def test_streamed_text_equals_that_of_the_whole_for_every_decoder() -> None:
    byte_level = BPETokenizer.train("the cat sat", 260)
    metaspace = Backend(models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2}, unk_token="s"))
    metaspace.decoder = decoders.Metaspace()
    pieces = Backend(models.WordPiece({"the": 0, "##s": 1, "cat": 2, ".": 3, "[UNK]": 4}))
    pieces.decoder = decoders.WordPiece()
    draw = random.Random(0)
    for source in (byte_level, metaspace, pieces, llama_like(), words(a=0, b=1)):
        tokenizer = load_tokenizer(source)
        for _ in range(100):
            ids = [draw.randrange(tokenizer.n_vocab) for _ in range(draw.randrange(12))]
            text = TextStream(tokenizer)
            shown = "".join(text.push(token)[0] for token in ids) + text.finish()
            whole = tokenizer.decode(ids) if ids else ""
            assert shown.rstrip("\ufffd") == whole.rstrip("\ufffd")  # half a character at the end is left out


def test_a_stop_string_may_be_complete_only_at_the_end() -> None:
    tokenizer = load_tokenizer(llama_like())
    text = TextStream(tokenizer, ["A"])
    assert text.push(258) == ("a", False)
    assert text.push(ord("A") + 1) == ("", False)  # a byte, which waits for its neighbours
    assert text.finish() == ""
