"""The loop: what is trained, recorded and written at each step, and what ends it."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptladder.assembly import GPT2, GPT2Config
from gptladder.tokenizer import CharTokenizer
from gptladder.training.data.batches import Batch, Batches, evaluation_batches
from gptladder.training.display import Display
from gptladder.training.loop import TrainingRun
from gptladder.training.loss import IGNORE_INDEX
from gptladder.training.metrics import Metrics, read_metrics
from gptladder.training.presets import OptimConfig, RunConfig, TrainConfig
from gptladder.training.snapshot_checks import SnapshotError
from gptladder.training.snapshots import list_snapshots, load_snapshot
from gptladder.training.trainer import NonFiniteError, Trainer

VOCAB = 13
TOKENIZER = CharTokenizer("abcdefghijklm")
CPU = torch.device("cpu")


def counting(windows: int, *, seq: int = 6, first: int = 0) -> np.ndarray:
    """Tokens that count upwards modulo the vocabulary, so that there is something to learn."""
    return (first + np.arange(windows * seq + 1)) % VOCAB


class Watched(Batches):
    """Batches of four that call a function with the number of each before they give it."""

    def __init__(self, before: Callable[[int], Any], windows: int = 20) -> None:
        super().__init__(counting(windows), seq=6, batch_size=4)
        self.before = before

    def __next__(self) -> Batch:
        self.before(self.state_dict()["position"] // 4)
        return super().__next__()


def gpt2(dtype: torch.dtype = torch.float32, **changes: Any) -> GPT2:
    torch.manual_seed(0)
    return GPT2(
        GPT2Config(**{"d_model": 8, "n_layers": 1, "n_heads": 2, "d_vocab": VOCAB, "n_ctx": 6, **changes}), dtype=dtype
    )


def trainer(
    folder: Path, model: GPT2 | None = None, train: Any = None, val: Any = None, *, run: dict[str, Any] | None = None,
    sample: Any = None, display: Display | None = None, **optim: Any,
) -> TrainingRun:  # fmt: skip
    config = TrainConfig(
        optim=OptimConfig(**{"max_steps": 6, "batch": 4, "lr": 1e-2, **optim}),
        run=RunConfig(
            **{"log_every": 1, "eval_every": 3, "snapshot_every": 2, "keep": 10, "prompt": "a", **(run or {})}
        ),
    )
    core = Trainer(
        config,
        model or gpt2(),
        train or Batches(counting(20), seq=6, batch_size=4),
        val or (lambda: evaluation_batches(counting(6, first=3), seq=6, batch_size=3)),
        device=CPU,
    )
    run_ = TrainingRun(core, TOKENIZER, folder=folder, sample=sample, display=display)
    run_.log.draws = False  # it takes longer than the training
    return run_


def test_learns_and_writes_down_every_number(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=60)
    assert run.run() == "max_steps"
    rows = read_metrics(tmp_path)
    assert [row.step for row in rows] == list(range(61))
    assert rows[0].loss is None
    assert rows[0].val_loss == pytest.approx(math.log(VOCAB), abs=0.1)
    assert (rows[60].loss or math.inf) < 0.3 * (rows[1].loss or 0)
    assert (rows[60].val_loss or math.inf) < 0.5 * (rows[0].val_loss or 0)
    assert (rows[60].val_accuracy or 0) > 0.9
    assert rows[60].tokens == 60 * 4 * 6
    assert rows[60].epoch == 12
    for row in rows:
        assert (row.val_loss is not None) == (row.step % 3 == 0)
        if row.val_loss is not None:
            assert row.val_perplexity == math.exp(row.val_loss)
    assert [json.loads(line)["step"] for line in (tmp_path / "speed.jsonl").read_text().splitlines()] == list(
        range(1, 61)
    )
    assert [path.name for path in list_snapshots(tmp_path / "snapshots")][-1] == "snapshot_step_60.pt"


def test_the_evaluation_is_the_plain_one_over_all_batches(tmp_path: Path) -> None:
    model = gpt2(torch.float64, attn_dropout=0.5, resid_dropout=0.5)
    val = counting(20, first=3)
    run = trainer(tmp_path, model, val=lambda: evaluation_batches(val, seq=6, batch_size=3))
    judged = run.trainer.evaluate()
    model.eval()
    tokens, targets = next(iter(evaluation_batches(val, seq=6, batch_size=100)))
    assert len(tokens) == 20
    logits = model(tokens)
    assert judged.loss == pytest.approx(F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item(), abs=1e-12)
    assert judged.accuracy == (logits.argmax(-1) == targets).double().mean().item()
    assert run.trainer.module.training


def losses(folder: Path) -> list[float]:
    return [row.loss for row in read_metrics(folder) if row.loss is not None]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gradient_checkpointing_changes_no_byte(tmp_path: Path, precision: str, optimizer: str) -> None:
    held = {}
    for name, checkpointed in (("plain", False), ("checkpointed", True)):
        (tmp_path / name).mkdir()
        model = gpt2(n_layers=3, attn_dropout=0.2, resid_dropout=0.2)
        run = trainer(
            tmp_path / name, model, gradient_checkpointing=checkpointed, precision=precision, optimizer=optimizer,
            micro_batch=3,
        )  # fmt: skip
        sizes: list[int] = []

        def count(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            assert run.run() == "max_steps"
        held[name] = sum(sizes)
    assert losses(tmp_path / "plain") == losses(tmp_path / "checkpointed")
    for name in ("metrics.jsonl", "final/model.safetensors", "last/model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "checkpointed" / name).read_bytes(), name
    assert held["checkpointed"] < held["plain"]


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_accumulation_changes_nothing(tmp_path: Path, micro_batch: int) -> None:
    """The mean is over tokens: micro-batches of other sizes, or with targets that do not count, weigh less."""

    class Ragged(Batches):
        def __next__(self) -> Batch:
            tokens, targets = super().__next__()
            targets[0, 1:] = IGNORE_INDEX
            return tokens, targets

    for name, micro in (("whole", None), ("parts", micro_batch)):
        (tmp_path / name).mkdir()
        trainer(
            tmp_path / name, gpt2(torch.float64), Ragged(counting(20), seq=6, batch_size=4), micro_batch=micro
        ).run()
    rows = [read_metrics(tmp_path / name) for name in ("whole", "parts")]
    assert rows[0][-1].tokens == 6 * (3 * 6 + 1)
    for whole, parts in zip(*rows, strict=True):
        for name in ("loss", "accuracy", "grad_norm", "val_loss"):
            assert getattr(whole, name) == pytest.approx(getattr(parts, name), abs=1e-12)


def test_the_same_losses_as_transformers_gpt2_under_torchs_adamw(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 6, "vocab_size": VOCAB}
    dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    model = gpt2(torch.float64, d_model=16, n_layers=2, init_range=0.2)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, **dropout)).double()
    parts = {
        "wte.weight": "embed.W_E",
        "wpe.weight": "pos_embed.W_pos",
        "ln_f.weight": "ln_final.w",
        "ln_f.bias": "ln_final.b",
    }
    for i in range(2):
        h, block = f"h.{i}.", f"blocks.{i}."
        parts |= {
            f"{h}{there}": f"{block}{here}"
            for there, here in {
                "ln_1.weight": "ln1.w",
                "ln_1.bias": "ln1.b",
                "ln_2.weight": "ln2.w",
                "ln_2.bias": "ln2.b",
                "attn.c_attn.weight": "attn.W_QKV",
                "attn.c_attn.bias": "attn.b_QKV",
                "attn.c_proj.weight": "attn.W_O",
                "attn.c_proj.bias": "attn.b_O",
                "mlp.c_fc.weight": "mlp.W_in",
                "mlp.c_fc.bias": "mlp.b_in",
                "mlp.c_proj.weight": "mlp.W_out",
                "mlp.c_proj.bias": "mlp.b_out",
            }.items()
        }
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.transformer.named_parameters():
            parameter.copy_(ours.pop(parts[name]).reshape(parameter.shape))
    assert not ours

    run = trainer(
        tmp_path, model, max_steps=50, lr=3e-3, min_lr=1e-4, warmup_steps=5, weight_decay=0.1, beta2=0.95, grad_clip=0.5
    )
    run.run()

    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    expected = []
    batches = Batches(counting(20), seq=6, batch_size=4)
    for step in range(50):
        for group in optimizer.param_groups:
            progress = (step - 5) / 45
            cosine = 1e-4 + (3e-3 - 1e-4) * 0.5 * (1 + math.cos(math.pi * progress))
            group["lr"] = 3e-3 * (step + 1) / 6 if step < 5 else cosine
        tokens, targets = next(batches)
        loss = F.cross_entropy(theirs(tokens).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses(tmp_path) == pytest.approx(expected, abs=1e-9, rel=0)
    assert expected[-1] < 0.5 * expected[0]


@pytest.mark.parametrize(
    ("ends", "ending", "steps"),
    [
        ({"max_steps": 4}, "max_steps", 4),
        ({"max_steps": None, "max_epochs": 0.5}, "max_epochs", 3),
        ({"max_steps": 4, "max_epochs": 1}, "max_steps", 4),
        ({"max_steps": 9, "max_epochs": 1}, "max_epochs", 5),
    ],
)
def test_ends_by_steps_or_epochs(tmp_path: Path, ends: dict[str, Any], ending: str, steps: int) -> None:
    run = trainer(tmp_path, **ends)
    assert run.run() == ending
    assert run.step == steps
    assert read_metrics(tmp_path)[-1].val_loss is not None
    assert (tmp_path / "snapshots" / f"snapshot_step_{steps}.pt").exists()


def test_ends_at_the_first_batch_with_the_target_loss(tmp_path: Path) -> None:
    assert trainer(tmp_path, max_steps=None, target_loss=1.0).run() == "target_loss"
    *before, last = losses(tmp_path)
    assert last <= 1.0 < min(before)


def test_a_cosine_needs_an_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--min-lr is the end of a cosine, and this run has no end"):
        trainer(tmp_path, max_steps=None, target_loss=1.0, min_lr=1e-4)
    trainer(tmp_path, max_steps=None, target_loss=1.0, min_lr=1e-4, decay_steps=9)


def test_an_interrupt_ends_after_the_step_with_a_snapshot(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupt(batch: int) -> None:
        if batch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    run = trainer(tmp_path, train=Watched(interrupt))
    assert run.run() == "interrupted"
    assert run.step == 3
    assert load_snapshot(tmp_path / "snapshots" / "snapshot_step_3.pt")["step"] == 3
    assert "Ctrl-C: ending after this step" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_a_run_whose_terminal_is_gone_ends_with_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Ctrl-C in `gptladder train 2>&1 | tee log` ends `tee` too, and a closed terminal sends SIGHUP."""

    def broken(*_: object) -> NoReturn:
        raise BrokenPipeError

    monkeypatch.setattr("gptladder.training.interruption.os", SimpleNamespace(write=broken))
    run = trainer(tmp_path, train=Watched(lambda batch: os.kill(os.getpid(), number) if batch == 2 else None))
    assert run.run() == "interrupted"
    assert load_snapshot(tmp_path / "snapshots" / "snapshot_step_3.pt")["step"] == 3


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_run_under_nohup_goes_on_without_a_terminal(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = trainer(tmp_path, train=Watched(lambda batch: os.kill(os.getpid(), signal.SIGHUP)), max_steps=4)
        assert run.run() == "max_steps"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    def interrupt(batch: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, train=Watched(interrupt)).run()


def poison(model: GPT2, _: Any = None) -> None:
    with torch.no_grad():
        model.embed.W_E[0] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda run: poison(run.trainer.loss.model), "the loss of step 4 is nan"),
        (
            lambda run: run.trainer.loss.model.embed.W_E.register_hook(lambda g: g * torch.inf),
            "the gradient's norm of step 4 is",
        ),
    ],
)
def test_numbers_that_are_not_finite_end_the_run_and_the_way_back_is_named(
    tmp_path: Path, spoil: Callable[[TrainingRun], Any], what: str
) -> None:
    run = trainer(
        tmp_path, train=Watched(lambda batch: spoil(run) if batch == 3 else None, windows=8), run={"eval_every": 100}
    )
    good = tmp_path / "snapshots" / "snapshot_step_2.pt"
    with pytest.raises(
        NonFiniteError,
        match=rf"^{what}.* \(its batch begins at window 4 of epoch 1\); the last good snapshot is {good}: continue",
    ):
        run.run()
    assert all(tensor.isfinite().all() for tensor in load_snapshot(good)["model_state_dict"].values())
    assert read_metrics(tmp_path)[-1].step == 3


def test_before_the_first_snapshot_there_is_no_way_back(tmp_path: Path) -> None:
    model = gpt2()
    poison(model)
    with pytest.raises(
        NonFiniteError, match="the validation loss after step 0 is nan; there is no snapshot from before it"
    ):
        trainer(tmp_path, model).run()


def test_the_snapshot_is_safe_when_the_evaluation_fails(tmp_path: Path) -> None:
    def failing() -> Iterator[Batch]:
        if run.step == 6:
            raise OSError("the validation data is gone")
        yield from evaluation_batches(counting(6), seq=6, batch_size=3)

    run = trainer(tmp_path, val=failing)
    with pytest.raises(OSError, match="the validation data is gone"):
        run.run()
    assert load_snapshot(tmp_path / "snapshots" / "snapshot_step_6.pt")["step"] == 6


def test_a_snapshot_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "snapshots").write_text("a file where the folder should be")
    with pytest.raises(SnapshotError, match="snapshot of step 2 could not be written"):
        trainer(tmp_path).run()


def drawn(model: GPT2, tokenizer: CharTokenizer, prompt: str, *, max_new_tokens: int, seed: int) -> str:
    assert not model.training
    torch.manual_seed(seed)  # what a careless sampler does
    return f"{prompt} {max_new_tokens} {seed}\n\nfrom {tokenizer.n_vocab}"


def test_samples_before_during_and_after(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    class Watch(Display):
        def sample(self, title: str, text: str) -> None:
            seen.append((title, text))

    trainer(tmp_path, sample=drawn, display=Watch(), run={"sample_tokens": 7, "final_samples": 2}).run()
    expected = [("Step 0", 42), ("Step 3", 42)]
    expected += [(f"After training, step 6, sample {i + 1} of 2", 42 + i) for i in (0, 1)]
    assert seen == [(title, f"a 7 {seed}\n\nfrom 13") for title, seed in expected]
    assert (tmp_path / "samples.md").read_text() == "".join(
        f"## {title}\n\n    a 7 {seed}\n\n    from 13\n\n" for title, seed in expected
    )
    trainer(tmp_path / ".", sample=drawn, run={"sample_every": "epoch", "final_samples": 0}, max_steps=11).run()
    titles = [line for line in (tmp_path / "samples.md").read_text().splitlines() if line.startswith("##")][4:]
    assert titles == ["## Step 0", "## Step 5", "## Step 10"]


def test_drawing_samples_does_not_change_the_training(tmp_path: Path) -> None:
    for name, sample in (("with", drawn), ("without", None)):
        (tmp_path / name).mkdir()
        trainer(tmp_path / name, gpt2(resid_dropout=0.3), sample=sample).run()
    assert (tmp_path / "with" / "metrics.csv").read_bytes() == (tmp_path / "without" / "metrics.csv").read_bytes()


def test_bfloat16_and_compilation_stay_near(tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {"plain": {}, "bf16": {"precision": "bf16"}}
    for name, options in runs.items():
        (tmp_path / name).mkdir()
        run = trainer(tmp_path / name, max_steps=20, **options)
        run.run()
        assert all(parameter.dtype == torch.float32 for parameter in run.trainer.loss.parameters())
    plain, bf16 = losses(tmp_path / "plain"), losses(tmp_path / "bf16")
    assert plain != bf16
    # bfloat16 has 8 significant bits: each product is within 0.4%.
    assert bf16 == pytest.approx(plain, abs=0.05)


def test_compile_compiles_the_model_and_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_compile = torch.nn.Module.compile
    compiled = []
    # The default backend needs a C++ compiler and half a minute; what it is given is what matters here.
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module: (compiled.append(module), real_compile(module, backend="aot_eager"))
    )
    runs: dict[str, dict[str, Any]] = {"plain": {}, "compiled": {"compile": True}}
    for name, options in runs.items():
        (tmp_path / name).mkdir()
        run = trainer(tmp_path / name, max_steps=3, **options)
        run.run()
        assert compiled == ([run.trainer.module] if options else [])
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    snapshot = load_snapshot(tmp_path / "compiled" / "snapshots" / "snapshot_step_3.pt")
    assert snapshot["model_state_dict"].keys() == gpt2().state_dict().keys()


def test_the_display_is_told_of_every_step(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []

    class Watch(Display):
        def progress(self, step: int, last_step: int | None, loss: float, tokens_per_second: float) -> None:
            assert tokens_per_second > 0
            seen.append((step, last_step))

        def metrics(self, row: Metrics) -> None:
            seen.append((row.step, -1))

    trainer(tmp_path, display=Watch(), max_steps=2).run()
    assert seen == [(0, -1), (1, 2), (1, -1), (2, 2), (2, -1)]


def test_final_is_the_best_model_and_last_the_last(tmp_path: Path) -> None:
    """The validation text counts downwards: the better the model learns to count up, the worse it becomes."""
    said: list[str] = []

    class Watch(Display):
        def say(self, text: str) -> None:
            said.append(text)

    down = counting(6)[::-1].copy()
    run = trainer(tmp_path, val=lambda: evaluation_batches(down, seq=6, batch_size=3), display=Watch(), max_steps=40)
    assert run.run() == "max_steps"
    judged = {row.step: row.val_loss for row in read_metrics(tmp_path) if row.val_loss is not None and row.step}
    best = min(judged, key=lambda step: judged[step])
    assert best < 40
    written = [json.loads((tmp_path / name / "step.json").read_text()) for name in ("final", "last")]
    assert written == [{"step": step, "val_loss": judged[step]} for step in (best, 40)]
    for name, step in (("final", best), ("last", 40)):
        model = GPT2.from_pretrained(tmp_path / name)
        run.trainer.loss.model.load_state_dict(model.state_dict())
        assert run.trainer.evaluate().loss == pytest.approx(judged[step], abs=1e-6)
        assert f"- step {step}: " in (tmp_path / name / "README.md").read_text()
    warnings = [text for text in said if "the validation loss rises while the training loss falls" in text]
    assert len(warnings) == 1
    assert f"at step {best}, kept in final/" in warnings[0]
    assert said[-2].startswith(f"final/ is the model of step {best}, the best")
    assert all(part in said[-1] for part in ("time: ", "training ", "evaluation ", "files "))


def test_a_better_model_before_a_return_to_a_snapshot_is_not_passed_over(tmp_path: Path) -> None:
    said: list[str] = []

    class Watch(Display):
        def say(self, text: str) -> None:
            said.append(text)

    run = trainer(tmp_path, display=Watch())
    run.log.rows.append(Metrics(step=1, epoch=0.1, tokens=1, val_loss=0.01))
    run.run()
    assert "the best since step 1 (validation loss" in said[-2]


def test_patience_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    down = counting(6)[::-1].copy()
    run = trainer(tmp_path, val=lambda: evaluation_batches(down, seq=6, batch_size=3), max_steps=400, patience=2)
    assert run.run() == "patience"
    steps = [row.step for row in read_metrics(tmp_path) if row.val_loss is not None]
    assert run.models.best is not None
    assert run.step == steps[-1] == run.models.best.step + 2 * 3
    assert load_snapshot(tmp_path / "snapshots" / f"snapshot_step_{run.step}.pt")["step"] == run.step


@pytest.mark.parametrize("where", ["evaluation", "sample"])
def test_an_interrupt_does_not_wait_for_what_can_be_repeated(tmp_path: Path, where: str) -> None:
    """The snapshot is that of the boundary before the evaluation, which the resumed run repeats."""
    (tmp_path / "whole").mkdir()
    trainer(tmp_path / "whole", gpt2(resid_dropout=0.3), sample=drawn).run()
    folder = tmp_path / "stopped"
    folder.mkdir()
    stopped = True

    def val() -> Iterator[Batch]:
        for batch in evaluation_batches(counting(6, first=3), seq=6, batch_size=3):
            if where == "evaluation" and stopped and run.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
                raise AssertionError("the evaluation went on")
            yield batch

    def sampler(*arguments: Any, **options: Any) -> str:
        text = drawn(*arguments, **options)
        if where == "sample" and stopped and run.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the sample went on")
        return text

    run = trainer(folder, gpt2(resid_dropout=0.3), val=val, sample=sampler, run={"snapshot_every": 100})
    assert run.run() == "interrupted"
    path = folder / "snapshots" / "snapshot_step_3.pt"
    stopped = False
    run = trainer(folder, gpt2(resid_dropout=0.3), val=val, sample=sampler)
    snapshot = load_snapshot(path)
    run.resume(snapshot, snapshot["files"])
    assert run.run() == "max_steps"
    for name in ("metrics.csv", "samples.md", "final/model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_snapshots_of_a_diverged_model_are_not_offered(tmp_path: Path) -> None:
    """Its weights are finite when they are saved, and useless."""

    def explode(batch: int) -> None:
        with torch.no_grad():
            if batch == 4:
                run.trainer.loss.model.unembed.W_U.mul_(1e3)
            elif batch == 9:
                poison(run.trainer.loss.model)

    run = trainer(tmp_path, train=Watched(explode), max_steps=20, run={"eval_every": 100, "keep": 2})
    with pytest.raises(NonFiniteError, match=r"the last good snapshot is \S+snapshot_step_4\.pt \(2 later ones"):
        run.run()
    assert [path.name for path in list_snapshots(tmp_path / "snapshots")][-1] == "snapshot_step_4.pt"
    aside = tmp_path / "branches" / "diverged-at-step-9" / "snapshots"
    assert [path.name for path in list_snapshots(aside)] == ["snapshot_step_6.pt", "snapshot_step_8.pt"]
