"""GGUF files in llama.cpp itself: the same ids, probabilities and greedy tokens as ours. `make test-gguf` runs it."""

import json
import os
import signal
from collections.abc import Iterable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.ladder.answers import randomize
from gptladder.sampling import SamplingParams, generate
from gptladder.tokenizer import BPETokenizer, load_tokenizer
from gptladder.weights import from_pretrained
from gptladder.weights.convert import convert

xllamacpp = pytest.importorskip("xllamacpp")

N_CTX, D_VOCAB = 24, 280
ASCII = 64  # the id of a letter
TEXT = "the cat sat on the mat, and the hat sat on the cat; it's 12 o'clock. " * 3
DTYPES: dict[str, Any] = {"f32": torch.float32, "f16": torch.float16, "q8_0": "q8_0"}

# llama.cpp takes GELU from a table in float16, and rounds activations to float16 or to 8 bits where the weights are.
BOUNDS = {"f32": 2e-3, "f16": 5e-3, "q8_0": 0.1}


def written(folder: Path, dtype: str, **changes: Any) -> tuple[GPT2, Path]:
    """A model with random weights that matter and a tokenizer, and its file."""
    sizes = {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_vocab": D_VOCAB, "n_ctx": N_CTX, **changes}
    model = GPT2(GPT2Config(**sizes)).eval()
    randomize(model, torch.Generator().manual_seed(0))
    model.tokenizer = BPETokenizer.train(TEXT, vocab_size=D_VOCAB)
    model.save_pretrained(folder / "source")
    convert(folder / "source", folder / "x.gguf", to="gguf", dtype=DTYPES[dtype])
    return model, folder / "x.gguf"


class LlamaCpp:
    """llama.cpp's own server, which reads a file in this process; its answers come over the loopback interface.

    Args:
        path: the file.
        n_ctx: number of positions of the model.
    """

    def __init__(self, path: Path, n_ctx: int) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.port, params.ui = n_ctx, 1, 0, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.warmup = params.fit_params = False
        params.verbosity = 0
        # Its default rounds keys and values to float16.
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(params)
        # It handles the signals itself: Ctrl-C would no longer end the tests.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._address = urlsplit(self._server.listening_address).netloc

    def _ask(self, path: str, **fields: Any) -> Any:
        connection = HTTPConnection(self._address, timeout=60)
        connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        assert response.status == 200, answer
        return answer

    def ids(self, text: str) -> list[int]:
        """The ids of a text, in which special tokens are read as text."""
        return self._ask("/tokenize", content=text, add_special=True, parse_special=False)["tokens"]

    def continued(self, ids: list[int], number: int) -> list[int]:
        """The greedy continuation of a text, up to the token that ends it."""
        return self._ask("/completion", prompt=ids, n_predict=number, temperature=0, return_tokens=True)["tokens"]

    def log_probs(self, ids: list[int]) -> torch.Tensor:
        """The log-probability of each token that may follow a text, [d_vocab]."""
        # It gives none for a token that ends the text or is a part of a character, so it has to draw another one. The
        # probabilities are those before the bias.
        found = self._ask("/completion", prompt=ids, n_predict=1, n_probs=D_VOCAB, logit_bias=[[ASCII, 1e4]])
        log_probs = torch.full((D_VOCAB,), torch.nan)
        for each in found["completion_probabilities"][0]["top_logprobs"]:
            log_probs[each["id"]] = each["logprob"]
        return log_probs


def greedy(model: GPT2, prompt: str | list[int], number: int) -> list[int]:
    (found,) = generate(model, prompt, SamplingParams(temperature=0), max_new_tokens=number)
    return found.tokens


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ids_and_the_probabilities_are_ours(tmp_path: Path, dtype: str) -> None:
    model, path = written(tmp_path, dtype)
    theirs, its = LlamaCpp(path, N_CTX), model.tokenizer
    assert its is not None
    for text in (TEXT, "naïve 狐 🙂\n\n  x  ", "it's 12 o'clock\t", "<|endoftext|> as text"):
        assert theirs.ids(text) == its.encode(text)
    ids = [11 * position for position in range(N_CTX)]
    with torch.no_grad():  # the numbers of the file, read by us
        logits = from_pretrained(path)(torch.tensor([ids]))[0]
    found = torch.stack([theirs.log_probs(ids[:seq]) for seq in range(1, N_CTX)])
    assert (found - logits[: N_CTX - 1].log_softmax(-1)).abs().max() < BOUNDS[dtype] * logits.std()


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"d_mlp": 96}, {"layer_norm_eps": 1e-3}])
def test_the_greedy_tokens_are_ours(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, path = written(tmp_path, "f32", **changes)
    theirs = LlamaCpp(path, N_CTX)
    for first in (5, 100, 200):
        assert theirs.continued([first, first + 1], 20) == greedy(model, [first, first + 1], 20)


@pytest.mark.skipif("GPTLADDER_MODEL" not in os.environ, reason="GPTLADDER_MODEL names a trained model's folder")
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_a_trained_model_writes_the_same_texts(tmp_path: Path, dtype: str) -> None:
    folder = Path(os.environ["GPTLADDER_MODEL"])
    convert(folder, tmp_path / "x.gguf", to="gguf", dtype=DTYPES[dtype])
    model, its = from_pretrained(folder), load_tokenizer(folder)
    theirs = LlamaCpp(tmp_path / "x.gguf", model.config.n_ctx)
    for prompt in ("Once upon a time", "One day, a", "The little", "Tim and Lily", "In the park"):
        found = theirs.continued(its.encode(prompt), 100)
        assert before_the_end(found, its.eot_id) == before_the_end(greedy(model, prompt, 100), its.eot_id), prompt


def before_the_end(tokens: Iterable[int], end: int | None) -> list[int]:
    return [token for token in tokens if token != end]
