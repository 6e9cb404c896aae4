"""The researcher's demos: TransformerLens's own numbers on the same weights, and what must hold without it."""

import importlib

import pytest
import torch
from matplotlib.image import imread

from gptladder import GPT2, GPT2Config
from gptladder.ladder.numbers import randomize
from gptladder.weights import to_hooked_transformer

lens = pytest.importorskip("transformer_lens")

DEMO = "repeated_tokens"  # what the others share
SCRIPTS = ("induction_heads", "logit_lens", "direct_logit_attribution", "activation_patching", "mean_ablation")
CONFIG = GPT2Config(
    d_model=10,
    n_layers=3,
    n_heads=2,
    d_head=4,
    d_mlp=14,
    d_vocab=17,
    n_ctx=12,
    tie_word_embeddings=False,
    unembed_bias=True,
)
TOKENS = torch.tensor(
    [[3, 1, 4, 15, 9, 3, 1, 4, 15, 9], [2, 7, 16, 8, 0, 2, 7, 16, 8, 0], [5, 5, 6, 5, 6, 1, 1, 2, 1, 6]]
)


@pytest.fixture(scope="module")
def ours():
    model = GPT2(CONFIG, dtype=torch.float64)
    randomize(model, torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture(scope="module")
def theirs(ours):
    return to_hooked_transformer(ours)


@pytest.fixture
def in_float64():
    """TransformerLens puts what it has found into tensors of the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def script(name):
    return importlib.import_module(name)


def off(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max()


def test_repeated_tokens_are_different_ones_twice(demo):
    tokens = demo.repeated(5, 4, 9, torch.Generator().manual_seed(0))
    assert tokens.shape == (5, 8)
    assert torch.equal(tokens[:, :4], tokens[:, 4:])
    assert all(len(set(row)) == 4 for row in tokens.tolist())


@pytest.mark.parametrize("kind", ["induction", "previous_token", "duplicate_token"])
def test_head_scores_are_the_detectors(demo, ours, theirs, kind, monkeypatch):
    heads = script("induction_heads")
    monkeypatch.setattr(theirs, "to_tokens", lambda tokens: tokens)  # it has no tokenizer, and is given tokens
    for row in TOKENS:
        wanted = getattr(heads, kind)(row[None])
        expected = lens.head_detector.detect_head(theirs, row[None], f"{kind}_head")
        # The detector divides by all queries.
        share = wanted.any(-1).double().mean()
        assert off(heads.head_scores(ours, row[None], wanted) * share, expected) < 1e-12


@pytest.mark.parametrize(("kind", "offset", "skipped"), [("induction", 1 - 5, 1), ("previous_token", -1, 0)])
def test_a_score_is_the_mean_of_a_diagonal(demo, ours, theirs, kind, offset, skipped):
    heads = script("induction_heads")
    tokens = demo.repeated(4, 5, 17, torch.Generator().manual_seed(0))
    found = heads.head_scores(ours, tokens, getattr(heads, kind)(tokens))
    _, cache = theirs.run_with_cache(tokens)
    diagonals = [cache["pattern", layer].diagonal(offset=offset, dim1=-2, dim2=-1) for layer in range(3)]
    # An induction head's first entry is of the first round's last token, which has not come before.
    expected = torch.stack([diagonal[..., skipped:].mean((0, -1)) for diagonal in diagonals])
    assert off(found, expected) < 1e-12


def test_the_logit_lens_is_theirs(demo, ours, theirs):
    stages = script("logit_lens").logit_lens(ours, TOKENS)
    logits, cache = theirs.run_with_cache(TOKENS)
    residual, labels = cache.accumulated_resid(incl_mid=True, apply_ln=True, return_labels=True)
    assert len(stages) == len(labels) == 7
    for found, expected in zip(stages.values(), residual, strict=True):
        assert off(found, theirs.unembed(expected)) < 1e-12
    assert off(stages["2 MLP"], logits) < 1e-12


@pytest.mark.usefixtures("in_float64")
def test_direct_logit_attribution_is_theirs_and_its_sum_is_exact(demo, ours, theirs):
    right, wrong = TOKENS.roll(-1, 1), (TOKENS + 5) % 17
    found = script("direct_logit_attribution").direct_logit_attribution(ours, TOKENS, right, wrong)
    logits, cache = theirs.run_with_cache(TOKENS)
    difference = logits.gather(-1, right[..., None]) - logits.gather(-1, wrong[..., None])
    assert off(sum(found.values()), difference[..., 0]) < 1e-12

    # logit_attrs is for weights whose final layer norm has been folded; here that is done by hand, in float64.
    folded = to_hooked_transformer(ours)
    with torch.no_grad():
        folded.unembed.W_U.mul_(folded.ln_final.w[:, None])
    stack, labels = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
    cache.model = folded
    expected = dict(zip(labels, cache.logit_attrs(stack, right, wrong), strict=True))
    assert {name.replace(" MLP", "_mlp_out").removeprefix("L" if "MLP" in name else "") for name in found} == set(
        labels
    )
    for name, part in found.items():
        theirs_is = expected[f"{name[1]}_mlp_out" if "MLP" in name else name]
        if name == "bias":  # theirs leaves out what the final layer norm and the unembedding add
            gone = ours.ln_final.b @ ours.unembed.W_U + ours.unembed.b_U
            theirs_is = theirs_is + gone[right] - gone[wrong]
        assert off(part, theirs_is) < 1e-12, name


@pytest.mark.usefixtures("in_float64")
def test_patching_is_theirs(demo, ours, theirs):
    clean, corrupted = TOKENS[:1], TOKENS[:1].clone()
    corrupted[0, 2] = 11

    def metric(logits):
        return logits[:, -1].log_softmax(-1)[:, 15]

    found = script("activation_patching").patch_heads(ours, clean, corrupted, metric)
    _, cache = theirs.run_with_cache(clean)
    patch = lens.patching.get_act_patch_attn_head_out_by_pos
    expected = patch(theirs, corrupted, cache, lambda logits: metric(logits)[0])
    assert off(found, expected.transpose(1, 2)) < 1e-12
    assert found.std() > 1e-3
    assert off(found[:, :, :2], metric(ours(corrupted)).expand(3, 2, 2)) < 1e-12  # before the change nothing differs


def test_mean_ablation_is_what_their_hooks_give(demo, ours, theirs):
    def loss(logits):
        return demo.loss_when_repeated(logits, TOKENS, 5)

    found = script("mean_ablation").mean_ablation(ours, TOKENS, loss)
    for layer in range(3):
        for head in range(2):

            def ablate(z, hook, head=head):
                z = z.clone()
                z[:, :, head] = z[:, :, head].mean(0, keepdim=True)
                return z

            expected = loss(theirs.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", ablate)]))
            assert off(found[layer, head], expected - loss(theirs(TOKENS))) < 1e-12
    assert found.abs().min() > 1e-4


def test_the_loss_is_of_the_second_round_but_its_first_token(demo):
    logits = torch.zeros(1, 6, 9)
    tokens = torch.tensor([[4, 5, 6, 4, 5, 6]])
    logits[0, 3, 5] = logits[0, 4, 6] = 50.0
    assert demo.loss_when_repeated(logits, tokens, 3) < 1e-6
    logits[0, 4] = 0
    assert demo.loss_when_repeated(logits, tokens, 3).item() == pytest.approx(torch.tensor(9.0).log().item() / 2)


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_demo_trains_a_model_once_and_draws_a_picture(demo, name, tmp_path, capsys):
    argv = ["--out", str(tmp_path), "--steps", "2"]
    for trained in (True, False):
        script(name).main(argv)
        said = capsys.readouterr().out
        assert ("trained a model of two layers for 2 steps" in said) == trained
        assert f"weights: {tmp_path / 'model'}" in said
    picture = imread(tmp_path / f"{name}.png")
    assert picture.shape[0] > 200
    assert picture.std() > 0.05


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_demo_takes_a_model_that_it_is_given(demo, name, tmp_path, capsys):
    GPT2(GPT2Config(d_model=12, n_layers=1, n_heads=3, d_vocab=40, n_ctx=32)).save_pretrained(tmp_path / "mine")
    script(name).main(["--model", str(tmp_path / "mine"), "--out", str(tmp_path)])
    assert f"weights: {tmp_path / 'mine'}" in capsys.readouterr().out
    assert (tmp_path / f"{name}.png").exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_the_small_model_has_an_induction_circuit(demo, tmp_path):
    model = demo.train()
    tokens = demo.repeated(64, demo.PERIOD, model.d_vocab, torch.Generator().manual_seed(0))
    heads = script("induction_heads")
    assert heads.head_scores(model, tokens, heads.induction(tokens))[1].max() > 0.8
    assert heads.head_scores(model, tokens, heads.previous_token(tokens))[0].max() > 0.3
