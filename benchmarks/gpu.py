"""Training and decoding on a GPU: tokens per second, the share of the card's bfloat16 speed, memory.

    python benchmarks/gpu.py

Training uses GPT-2's 124M shape, 1,024 tokens, bfloat16 with autocast, compiled. Three contestants alternate: our loss
in chunks, our logits with ``F.cross_entropy``, and transformers' model. The card's speed is measured first, by large
matrix products. Decoding is greedy, one row: by ``generate``, by transformers' ``generate``, and over a cache of fixed
size, step by step and with CUDA graphs (``torch.compile``, ``mode="reduce-overhead"``).
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import machine, operations_per_token, print_table, write_result
from torch import Tensor, nn

from gptladder.assembly import GPT2, GPT2Config
from gptladder.sampling import SamplingParams, generate
from gptladder.training.loss import NextTokenLoss
from gptladder.training.optim import adamw
from gptladder.weights import to_hf


def card_speed(device: torch.device) -> float:
    """Return the operations per second of the card's fastest large bfloat16 product."""
    best = 0.0
    for size in (4096, 8192) if device.type == "cuda" else (512,):
        a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
        seconds = timed(lambda a=a, b=b: a @ b, device, 10)
        best = max(best, 2 * size**3 / seconds)
    return best


def timed(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Return the mean seconds of ``times`` calls, after three calls that do not count."""
    for _ in range(3):
        work()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return (time.perf_counter() - began) / times


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def training(config: GPT2Config, batch: int, device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """Tokens per second and peak memory of each contestant; the first loss of all must agree."""
    torch.manual_seed(0)
    model = GPT2(config)
    tokens, targets = torch.randint(config.d_vocab, (2, batch, config.n_ctx), device=device)

    def by_logits(model: Callable[[Tensor], Any], logits: Callable[[Any], Tensor]) -> Callable[[], Tensor]:
        return lambda: F.cross_entropy(logits(model(tokens)).flatten(0, 1).float(), targets.flatten())

    def build(name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
        twin = GPT2(config).to(device)
        twin.load_state_dict(model.state_dict())
        if name == "chunked loss":
            objective = NextTokenLoss(twin)
            compiled = torch.compile(objective)
            return objective, lambda: compiled(tokens, targets).loss / targets.numel()
        if name == "logits":
            return twin, by_logits(torch.compile(twin), lambda out: out)
        theirs = to_hf(model).to(device).train()
        theirs.config.use_cache = False
        return theirs, by_logits(torch.compile(theirs), lambda out: out.logits)

    speeds: dict[str, list[float]] = {"chunked loss": [], "logits": [], "transformers": []}
    memory, first = {}, {}
    for _ in range(rounds):
        for name in random.sample(list(speeds), len(speeds)):
            module, loss = build(name)
            optimizer = adamw(module, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)

            def step(loss: Any = loss, optimizer: Any = optimizer, name: str = name) -> None:
                with torch.autocast(device.type, torch.bfloat16):
                    value = loss()
                value.backward()
                optimizer.step()
                optimizer.zero_grad()
                if name not in first:
                    first[name] = value.item()

            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            speeds[name].append(tokens.numel() / timed(step, device, 10 if device.type == "cuda" else 1))
            memory[name] = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
    if max(first.values()) - min(first.values()) > 0.05:
        raise SystemExit(f"they do not compute the same, there is nothing to compare: {first}")
    return {
        name: {
            "tokens_per_second": statistics.median(own),
            "least": min(own),
            "most": max(own),
            "peak_gb": memory[name],
            "first_loss": first[name],
        }
        for name, own in speeds.items()
    }


def decoding(config: GPT2Config, device: torch.device, new: int) -> dict[str, float]:
    """Tokens per second of one row; the tokens of one step after the other and through CUDA graphs must be the same."""
    torch.manual_seed(0)
    model = GPT2(config).to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval()
    prompt = torch.randint(config.d_vocab, (1, 16), device=device)
    keys = [
        torch.zeros(2, 1, config.n_heads, config.n_ctx, config.d_head, device=device, dtype=model.embed.W_E.dtype)
        for _ in range(config.n_layers)
    ]
    for kept in keys:  # a CUDA graph is not made for what changes its inputs, unless they stay where they are
        torch._dynamo.mark_static_address(kept)
    places = torch.arange(config.n_ctx, device=device)

    def next_token(token: Tensor, position: Tensor) -> Tensor:
        """One step over a cache of fixed size, which a CUDA graph can replay: what is not yet written is masked."""
        residual = model.embed(token) + model.pos_embed(token, positions=position[None])
        for block, kept in zip(model.blocks, keys, strict=True):
            q, k, v = block.attn.project(block.ln1(residual))
            kept[0].index_copy_(2, position, k.transpose(1, 2))
            kept[1].index_copy_(2, position, v.transpose(1, 2))
            seen = (places <= position).view(1, 1, 1, -1)
            z = F.scaled_dot_product_attention(q.transpose(1, 2), kept[0], kept[1], seen, scale=block.attn.scale)
            residual = residual + z.transpose(1, 2).flatten(2) @ block.attn.W_O.flatten(0, 1) + block.attn.b_O
            residual = residual + block.mlp(block.ln2(residual))
        return model.unembed(model.ln_final(residual)).argmax(-1)

    def decode(step: Callable[[Tensor, Tensor], Tensor]) -> list[int]:
        for kept in keys:
            kept.zero_()
        found, token = [], prompt[:, :1]
        for index in range(prompt.shape[1] + new - 1):
            guess = step(token, torch.tensor([index], device=device)).clone()
            token = prompt[:, index + 1 : index + 2] if index + 1 < prompt.shape[1] else guess
            if index + 1 >= prompt.shape[1]:
                found.append(guess)
        return torch.cat(found).flatten().tolist()

    with torch.inference_mode():
        compiled = torch.compile(next_token, mode="reduce-overhead", fullgraph=True)
        if decode(next_token) != decode(compiled):
            raise SystemExit("compiled decoding gives other tokens; there is nothing to compare")
        steps = prompt.shape[1] + new - 1
        speeds = {
            name: steps / timed(lambda step=step: decode(step), device, 2)
            for name, step in (("step by step", next_token), ("CUDA graphs", compiled))
        }
    theirs = to_hf(model).to(device, model.embed.W_E.dtype).eval()
    greedy = SamplingParams(temperature=0)
    for name, work in {
        "gptladder's generate": lambda: generate(model, prompt[0].tolist(), greedy, max_new_tokens=new),
        "transformers' generate": lambda: theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=new, max_new_tokens=new
        ),
    }.items():
        speeds[name] = new / timed(work, device, 2)
    return speeds


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="sequences of 1,024 tokens (default: 16)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--device", default="cuda", help="cpu: test the script with a tiny model (default: cuda)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here: nothing was measured")
    toy = device.type != "cuda"
    config = GPT2Config(d_model=32, n_layers=2, n_heads=2, d_vocab=101, n_ctx=64) if toy else GPT2Config()
    speed = card_speed(device)
    found = training(config, arguments.batch, device, arguments.rounds)
    per_token = operations_per_token(config, config.n_ctx)
    tokens_per_second = decoding(config, device, 16 if toy else 256)
    card = "a toy" if toy else torch.cuda.get_device_name()
    print_table(
        f"training on {card}, whose products reach {speed / 1e12:.1f} TFLOP/s",
        ["", "tokens/s", "from", "to", "of the card", "peak GB"],
        [
            [
                name,
                *(f"{f[key]:,.0f}" for key in ("tokens_per_second", "least", "most")),
                f"{f['tokens_per_second'] * per_token / speed:.0%}",
                f"{f['peak_gb']:.2f}",
            ]
            for name, f in found.items()
        ],
        foreign=0.0,
    )
    print_table(
        "greedy decoding, one row",
        ["", "tokens/s"],
        [[n, f"{v:.0f}"] for n, v in tokens_per_second.items()],
        foreign=0.0,
    )
    if arguments.json:
        result = {"machine": machine(), "bf16_flop_per_second": speed, "training": found, "decoding": tokens_per_second}
        write_result(arguments.json, result)


if __name__ == "__main__":
    main()
