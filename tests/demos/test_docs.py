"""The examples in the documents about layers and activations run, and the files that they name are there."""

import re
from pathlib import Path

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.weights import to_hf

ROOT = Path(__file__).parents[2]
DOCS = ("layers-elsewhere", "interpretability")


def examples(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{name}.md").read_text(), flags=re.DOTALL)


def test_the_attention_that_translates() -> None:
    pytest.importorskip("transformers")
    code, _ = examples("layers-elsewhere")
    names: dict = {}
    exec(code, names)
    model = GPT2(GPT2Config(d_model=12, n_layers=2, n_heads=3, d_vocab=17, n_ctx=16, init_range=0.3)).double().eval()
    hf, tokens, mask = to_hf(model), torch.randint(17, (2, 6)), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    hf.set_attn_implementation("eager")
    expected = hf(tokens, attention_mask=mask).logits
    for theirs, ours in zip(hf.transformer.h, model.blocks, strict=True):
        theirs.attn = names["TheirAttention"](d_model=12, n_heads=3, dtype=torch.float64)
        theirs.attn.load_state_dict(ours.attn.state_dict())
    assert (hf(tokens, attention_mask=mask, use_cache=False).logits - expected)[mask.bool()].abs().max() < 1e-12


def test_transformers_trainer_trains_the_model_itself(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    _, code = examples("layers-elsewhere")
    names: dict = {}
    exec(code, names)
    torch.manual_seed(0)
    model = GPT2(GPT2Config(d_model=12, n_layers=2, n_heads=3, d_vocab=17, n_ctx=16))
    rows = [{"input_ids": torch.arange(start, start + 8) % 17} for start in range(32)]
    tokens = torch.stack([row["input_ids"] for row in rows])
    before = model(tokens, return_type="loss").item()
    options = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=80, learning_rate=2e-2, report_to=[], save_strategy="no", use_cpu=True
    )
    data = [{**row, "labels": row["input_ids"], "attention_mask": torch.ones(8, dtype=torch.int64)} for row in rows]
    trainer = transformers.Trainer(model=names["Trainable"](model), args=options, train_dataset=data)
    trainer.train()
    assert model(tokens, return_type="loss").item() < 0.5 * before
    assert trainer.evaluate(data)["eval_loss"] < 0.5 * before
    model.save_pretrained(tmp_path / "final")
    assert torch.equal(GPT2.from_pretrained(tmp_path / "final").embed.W_E, model.embed.W_E)


def test_the_first_steps() -> None:
    names: dict = {}
    for code in examples("interpretability"):
        exec(code, names)
    assert names["found"].values.shape == (5, 3, 100)
    assert names["cache"]["pattern", 0].shape == (1, 4, 10, 10)
    assert not torch.equal(names["without"], names["logits"])


@pytest.mark.parametrize("name", ["for-researchers", "for-engineers"])
def test_the_examples_of_the_start_pages(name: str) -> None:
    (code,) = examples(name)
    names: dict = {}
    exec(code, names)
    for expression, shape in re.findall(r"^(\S+\]?\(?.*\.shape)  # (\[[\d, ]+\])", code, flags=re.MULTILINE):
        assert list(eval(expression, names)) == eval(shape)


@pytest.mark.parametrize("name", DOCS)
def test_every_file_that_is_named_is_there(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text()
    for linked in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / "docs" / linked).exists(), linked
    for path in re.findall(r"(?:demos|tests)/[\w/]+\.py", text):
        assert (ROOT / path).exists(), path
