"""Text into and out of a model: as HookedTransformer with the same tokenizer, and what has no counterpart there."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.assembly.text import one_row
from gptladder.components import HookPoint, TypeCheckError
from gptladder.ladder.answers import randomize
from gptladder.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, Tokenizer
from gptladder.weights import from_pretrained, to_hooked_transformer

pytest.importorskip("transformer_lens")

TEXTS = ["Once upon a time", "", " the", "café ☕", "<|endoftext|>Hello", "Hello, world!", "\n\n  two"]


def byte_pairs() -> BPETokenizer:
    """Bytes, and three merges."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {b"th": 256, b"he": 257, b" t": 258}
    return BPETokenizer(ranks, {END_OF_TEXT: 259})


def made(tokenizer: Tokenizer | None, d_vocab: int = 260, **changes: Any) -> GPT2:
    sizes = {"d_model": 10, "n_layers": 2, "n_heads": 2, "n_ctx": 24, "d_vocab": d_vocab}
    model = GPT2(GPT2Config(**{**sizes, **changes}), dtype=torch.float64)
    randomize(model, torch.Generator().manual_seed(0))
    model.tokenizer = tokenizer
    return model.eval()


@pytest.fixture(scope="module")
def ours() -> GPT2:
    return made(byte_pairs())


@pytest.fixture(scope="module")
def theirs(ours: GPT2) -> Any:
    return to_hooked_transformer(ours)


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() < 1e-12)


def test_a_hooked_transformer_gets_the_tokenizer(ours: GPT2, theirs: Any) -> None:
    assert theirs.tokenizer is not None
    assert theirs.to_string(theirs.to_tokens("the cat")[0]) == "<|endoftext|>the cat"
    assert to_hooked_transformer(made(None)).tokenizer is None


@pytest.mark.parametrize("prepend_bos", [None, True, False])
@pytest.mark.parametrize("text", [text for text in TEXTS if text], ids=repr)
def test_tokens_of_a_text_are_hooked_transformers(ours: GPT2, theirs: Any, text: str, prepend_bos: bool | None) -> None:
    options: dict[str, Any] = {} if prepend_bos is None else {"prepend_bos": prepend_bos}
    tokens = ours.to_tokens(text, **options)
    assert torch.equal(tokens, theirs.to_tokens(text, **options))
    assert ours.to_str_tokens(text, **options) == theirs.to_str_tokens(text, **options)
    assert ours.to_string(tokens) == theirs.to_string(tokens)
    assert ours.to_string(tokens[0]) == theirs.to_string(tokens[0])
    assert close(ours(text, **options), theirs(text, **options))
    for return_type in ("loss", "both"):
        if tokens.shape[1] > 1:
            one, other = (model(text, return_type=return_type, **options) for model in (ours, theirs))
            assert close(one, other) if return_type == "loss" else close(one.loss, other.loss)


def test_an_empty_text_is_the_token_that_begins_every_text(ours: GPT2, theirs: Any) -> None:
    assert torch.equal(ours.to_tokens(""), theirs.to_tokens(""))
    assert ours.to_tokens("").tolist() == [[259]]
    assert ours.to_tokens("", prepend_bos=False).shape == (1, 0)
    with pytest.raises(ValueError, match="at least one token"):
        ours("", prepend_bos=False)


@pytest.mark.parametrize("side", ["left", "right", None])
def test_several_texts_are_padded_as_in_hooked_transformer(ours: GPT2, theirs: Any, side: Any) -> None:
    texts = ["the cat sat", "he", "Hello, world!"]
    options = {} if side is None else {"padding_side": side}
    assert torch.equal(ours.to_tokens(texts, **options), theirs.to_tokens(texts, **options))
    assert ours.to_str_tokens(texts) == theirs.to_str_tokens(texts)
    logits, expected = ours(texts, **options), theirs(texts, **options)
    losses = ours(texts, return_type="loss", loss_per_token=True, **options)
    counted = []
    for row, text in enumerate(texts):
        alone = ours(text)
        n = alone.shape[1]
        at = slice(-n, None) if side == "left" else slice(n)
        assert (logits[row, at] - alone[0]).abs().max() < 1e-12
        assert (expected[row, at] - alone[0]).abs().max() < 1e-12
        one = ours(text, return_type="loss", loss_per_token=True)[0]
        nonzero = losses[row][losses[row] != 0]
        assert (nonzero - one).abs().max() < 1e-12
        counted.append(one)
    assert (ours(texts, return_type="loss", **options) - torch.cat(counted).mean()).abs() < 1e-12
    if side == "left":  # of texts padded on the right, theirs counts the padding too
        assert (ours(texts, return_type="loss", **options) - theirs(texts, return_type="loss", **options)).abs() < 1e-12


def test_caches_and_hooks_take_text(ours: GPT2, theirs: Any) -> None:
    _, cache = ours.run_with_cache("the cat", prepend_bos=False)
    _, expected = theirs.run_with_cache("the cat", prepend_bos=False)
    assert close(cache["resid_post", -1], expected["resid_post", -1])
    seen = []
    ours.run_with_hooks("the cat", fwd_hooks=[("hook_embed", lambda x, hook: seen.append(x.shape))])
    assert seen == [theirs.run_with_cache("the cat")[1]["embed"].shape]


def test_a_hook_on_the_tokens_changes_them(ours: GPT2) -> None:
    def swap(tokens: Tensor, hook: HookPoint) -> Tensor:
        tokens[0, 1] = ours.to_single_token("s")
        return tokens

    # The position's embedding knows nothing of tokens.
    assert torch.equal(ours.run_with_hooks("cat", fwd_hooks=[("hook_tokens", swap)]), ours("sat"))
    assert "hook_tokens" not in ours.run_with_cache("cat")[1]
    ours.cfg.use_hook_tokens = True
    assert torch.equal(ours.run_with_cache("cat")[1]["hook_tokens"], ours.to_tokens("cat"))
    ours.cfg.use_hook_tokens = False


@pytest.mark.parametrize("given", [[104, 256, 259], (104, 256), torch.tensor([[1, 2]]), torch.tensor([[1, 2], [3, 4]])])
def test_text_of_tokens_in_every_form(ours: GPT2, theirs: Any, given: Any) -> None:
    tensor = torch.as_tensor(given)
    assert ours.to_string(given) == theirs.to_string(tensor)
    assert ours.to_string(tensor.numpy()) == ours.to_string(given)
    expected = [theirs.to_str_tokens(row) for row in tensor] if len(tensor) > 1 and tensor.dim() == 2 else None
    assert ours.to_str_tokens(given) == (theirs.to_str_tokens(tensor) if expected is None else expected)


def test_single_tokens_are_read_and_written(ours: GPT2, theirs: Any) -> None:
    for text in ("th", " t", "a", "<|endoftext|>"):
        token = ours.to_single_token(text)
        assert token == theirs.to_single_token(text)
        assert ours.to_single_str_token(token) == theirs.to_single_str_token(token) == text
        direction = ours.tokens_to_residual_directions(text)
        assert torch.equal(direction, theirs.tokens_to_residual_directions(text))
        assert torch.equal(direction, ours.W_U[:, token])
    tokens = ours.to_tokens("the cat")
    assert torch.equal(
        ours.tokens_to_residual_directions(tokens), theirs.tokens_to_residual_directions(tokens).reshape(1, -1, 10)
    )
    for one in (torch.tensor([5]), torch.tensor([[5]])):
        assert torch.equal(ours.tokens_to_residual_directions(one), ours.W_U[:, 5])
    with pytest.raises(ValueError, match=r"'cat' has 3 tokens \('c', 'a', 't'\), where exactly one is expected"):
        ours.to_single_token("cat")


@pytest.mark.parametrize("mode", ["first", "last"])
def test_positions_of_a_token_are_hooked_transformers(ours: GPT2, theirs: Any, mode: Any) -> None:
    for given in ("banana", ours.to_tokens("banana"), ours.to_tokens("banana")[0], ours.to_tokens("banana").double()):
        assert ours.get_token_position("a", given, mode) == theirs.get_token_position("a", given, mode)
    for letter, places in (("a", {"first": 1, "last": 5}), ("n", {"first": 2, "last": 4})):
        assert ours.get_token_position(letter, "banana", mode, prepend_bos=False) == places[mode]
    with pytest.raises(
        ValueError, match=r"token 120 is not among the 9 tokens \[259, 98, 97, 110, 97, 110, 97, 110\]$"
    ):
        ours.get_token_position("x", "bananana", mode)
    with pytest.raises(ValueError, match="there are 2 rows of tokens; give one"):
        ours.get_token_position("a", torch.tensor([[97], [97]]), mode)


def test_a_long_text_is_cut_with_a_warning_or_refused(ours: GPT2, theirs: Any) -> None:
    long = "x" * 40
    with pytest.warns(UserWarning, match="a text has 41 tokens, and is cut to the model's 24 positions") as caught:
        tokens = ours.to_tokens(long)
    assert caught[0].filename == __file__
    assert torch.equal(tokens, theirs.to_tokens(long))
    assert torch.equal(tokens, ours.to_tokens(long, truncate=True))
    assert ours.to_tokens(long, truncate=False).shape == (1, 41)
    with pytest.raises(ValueError, match="a text has 41 tokens and the model 24 positions"):
        ours(long)
    assert ours.to_tokens("x" * 23).shape == (1, 24)
    assert ours("x" * 23).shape[1] == 24


def test_the_default_of_prepend_bos_can_be_changed() -> None:
    model = made(byte_pairs())
    model.cfg.default_prepend_bos = False
    assert model.cfg.default_prepend_bos is False
    assert model.to_tokens("a").tolist() == [[97]]
    assert model.to_tokens("a", prepend_bos=True).tolist() == [[259, 97]]


def test_a_tokenizer_without_special_tokens_prepends_nothing() -> None:
    model = made(CharTokenizer("abc"), d_vocab=3)
    assert [each.cfg.tokenizer_prepends_bos for each in (model, made(byte_pairs()), made(None))] == [False, False, None]
    assert model.to_tokens("cab").tolist() == [[2, 0, 1]]
    with pytest.raises(ValueError, match="no token that begins a text"):
        model.to_tokens("cab", prepend_bos=True)
    with pytest.raises(ValueError, match="no token to pad with"):
        model.to_tokens(["cab", "a"])
    logits = model(["cab", "a"])  # which needs no token for padding
    assert model.input_to_embed(["cab", "a"])[1].tolist() == [[2, 0, 1], [0, 0, 0]]
    assert close(logits[1:, :1], model("a"))
    assert close(logits[:1], model("cab"))


def test_a_template_that_begins_every_text_is_not_doubled(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import processors

    byte_pairs().save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    for template, end in (("<|endoftext|> $A", []), ("<|endoftext|> $A <|endoftext|>", [259])):
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<|endoftext|>", 259)])
        model = made(None)
        model.tokenizer = backend
        assert model.cfg.tokenizer_prepends_bos is True
        assert model.to_tokens("a").tolist() == model.to_tokens("a", prepend_bos=True).tolist() == [[259, 97, *end]]
        assert model.to_tokens("a", prepend_bos=False).tolist() == [[97, *end]]


def test_without_a_tokenizer_one_sentence_tells_what_to_do() -> None:
    model = made(None)
    for call in (
        lambda: model("text"),
        lambda: model.run_with_cache(["text"]),
        lambda: model.to_tokens("text"),
        lambda: model.to_string([1]),
        lambda: model.to_single_token("t"),
    ):
        with pytest.raises(ValueError, match=r"the model has no tokenizer .*: set model\.tokenizer to a folder"):
            call()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there is no text"),
        (["a", 3.5], "text is expected, or a list of texts, not float"),
        ([None], "not NoneType"),
        (3, "not int"),
        ({"input_ids": [[1, 2]]}, r"not a dict: .* give its \['input_ids'\]"),
    ],
)
def test_what_is_no_text_is_refused(ours: GPT2, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(given)
    with pytest.raises(ValueError, match=message):
        ours.to_tokens(given)


def test_tokens_are_taken_from_arrays_and_lists(ours: GPT2) -> None:
    tokens = torch.tensor([[1, 2], [3, 4]])
    for given in (tokens.numpy(), tokens.tolist(), list(tokens), [list(row) for row in tokens], list(tokens.numpy())):
        assert torch.equal(ours(given), ours(tokens))
    for unsigned in (torch.uint8, torch.uint16, torch.uint32):
        assert torch.equal(ours(tokens.to(unsigned)), ours(tokens))
    for given in (tokens[0].numpy(), list(tokens[0].numpy()), list(tokens[0])):
        assert torch.equal(ours(given), ours(tokens[0]))


@pytest.mark.parametrize("given", [[1.5], [True], [float("nan")], [float("inf")], torch.tensor([0.5]).numpy()])
def test_what_is_no_token_id_is_refused(ours: GPT2, given: Any) -> None:
    for call in (ours, ours.to_string, ours.to_str_tokens):
        with pytest.raises(ValueError, match="token ids are expected"):
            call(given)


def test_rows_of_different_lengths_are_refused(ours: GPT2) -> None:
    for given in ([[1, 2, 3], [4]], [torch.tensor([1, 2, 3]), torch.tensor([4])]):
        with pytest.raises(ValueError, match=r"have 1 to 3 tokens: fill them up .*padding_mask"):
            ours(given)
    with pytest.raises(ValueError, match="have 0 to 1 tokens"):
        ours([[1], 2])
    assert torch.equal(ours(range(3)), ours([0, 1, 2]))
    with pytest.raises(TypeCheckError, match="Int"):
        ours(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("given", "row"),
    [([3, 1], [3, 1]), (torch.tensor([[3, 1]]), [3, 1]), (torch.tensor([3, 1]).numpy(), [3, 1]), (range(2), [0, 1])],
)
def test_the_tokens_of_one_text_are_a_row(given: Any, row: list[int]) -> None:
    assert one_row(given) == row


@pytest.mark.parametrize("given", [[[1, 2], [3, 4]], torch.zeros(1, 1, 2), 3, [[1], 2], {"a": 1}, b"ab", None, ["a"]])
def test_several_texts_are_no_row(given: Any) -> None:
    with pytest.raises(ValueError, match="expected, "):
        one_row(given)


def test_a_mask_that_is_added_to_scores_is_refused(ours: GPT2) -> None:
    tokens, mask = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 1, 0]])
    padded = ours(tokens, padding_mask=mask.bool())
    for same in (mask, mask.bool(), mask.double(), mask.tolist()):
        assert torch.equal(ours(tokens, attention_mask=same)[:, :2], padded[:, :2])
    for wrong in ((1.0 - mask) * -1e4, mask * 0.5, mask + 1):
        with pytest.raises(ValueError, match="it must be 1 at tokens and 0 at padding"):
            ours(tokens, attention_mask=wrong)
        with pytest.raises(ValueError, match="it must be 1 at tokens and 0 at padding"):
            ours.input_to_embed(tokens, attention_mask=wrong)


def test_a_tokenizer_of_a_larger_vocabulary_is_refused() -> None:
    model = made(byte_pairs(), d_vocab=100)
    assert model.to_tokens("A").tolist() == [[65]]  # whose start token the model does not have
    for character in "dz":
        last = f"gives token {ord(character)}, but the model's vocabulary has 100: ids go from 0 to 99;"
        with pytest.raises(ValueError, match=last):
            model(character)
    model = made(byte_pairs(), d_vocab=259)  # all tokens but the one that begins a text, and pads
    assert model.to_tokens("A").tolist() == [[65]]
    with pytest.raises(ValueError, match="no token to pad with"):
        model.to_tokens(["A", "BC"])


def test_tokens_are_put_on_the_models_device() -> None:
    model = made(byte_pairs()).to("meta")
    assert model.to_tokens("a").device.type == "meta"


def test_text_becomes_what_the_first_block_reads(ours: GPT2, theirs: Any) -> None:
    for given in ("the cat", torch.tensor([[1, 2, 3]])):
        (residual, tokens, nothing, mask), expected = ours.input_to_embed(given), theirs.input_to_embed(given)
        assert close(residual, expected[0])
        assert torch.equal(tokens, expected[1])
        assert nothing is None
        assert mask is None
    residual, tokens, _, mask = ours.input_to_embed(["the cat", "he"], padding_side="left")
    assert close(ours(residual, start_at_layer=0, attention_mask=mask), ours(["the cat", "he"], padding_side="left"))


def test_text_and_a_mask_are_refused(ours: GPT2) -> None:
    with pytest.raises(ValueError, match="leave out padding_mask"):
        ours("cat", padding_mask=torch.ones(1, 4, dtype=torch.bool))


# Where the tokenizer is from.


def test_from_pretrained_finds_the_tokenizer(tmp_path: Path) -> None:
    model = made(byte_pairs())
    made(None).save_pretrained(tmp_path / "model")
    assert from_pretrained(tmp_path / "model").tokenizer is None
    byte_pairs().save(tmp_path / "model")
    read = from_pretrained(tmp_path / "model")
    assert read.tokenizer is not None
    assert read.tokenizer.fingerprint == byte_pairs().fingerprint
    assert read.to_tokens("the").tolist() == model.to_tokens("the").tolist()
    assert close(read("the"), model("the"))


def test_a_damaged_tokenizer_does_not_keep_the_weights_from_loading(tmp_path: Path) -> None:
    made(None).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    model = from_pretrained(tmp_path)
    assert model(torch.tensor([[1, 2]])).isfinite().all()
    assert model.cfg.d_model == 10  # which asks for no tokenizer
    with pytest.raises((ValueError, OSError), match=r"tokenizer\.json"):
        model("text")


def test_copies_have_the_tokenizer_and_the_state_has_none(ours: GPT2) -> None:
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert twin.to_tokens("the").tolist() == ours.to_tokens("the").tolist()
        assert torch.equal(twin("the"), ours("the"))
    assert not any("tokenizer" in key for key in ours.state_dict())


def test_transformers_own_tokenizer_can_be_set(ours: GPT2, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    byte_pairs().save(tmp_path)
    model = made(None)
    model.tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.to_tokens("the cat").tolist() == ours.to_tokens("the cat").tolist()
    model.tokenizer = tmp_path
    assert model.to_tokens("the cat").tolist() == ours.to_tokens("the cat").tolist()
    with pytest.raises(ValueError, match="no tokenizer"):
        model.tokenizer = tmp_path / "nowhere"
    assert model.tokenizer is not None
