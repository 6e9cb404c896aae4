"""The logit lens: what the model would say if it stopped after each layer.

    python demos/logit_lens.py [--model gpt2]

The residual stream after each layer goes through the final layer norm and the unembedding (nostalgebraist 2020; in
TransformerLens, ``cache.accumulated_resid(incl_mid=True, apply_ln=True)`` and ``model.unembed``).
"""

from collections.abc import Sequence

import torch
from repeated_tokens import PERIOD, arguments, figure, heat, prepare, save
from torch import Tensor

from gptladder import GPT2


@torch.inference_mode()
def logit_lens(model: GPT2, tokens: Tensor) -> dict[str, Tensor]:
    """Logits [batch seq d_vocab] at each stage of the residual stream, from the embeddings to the last block."""
    stages = {"embeddings": "blocks.0.hook_resid_pre"}
    for layer in range(model.config.n_layers):
        stages[f"{layer} attention"] = f"blocks.{layer}.hook_resid_mid"
        stages[f"{layer} MLP"] = f"blocks.{layer}.hook_resid_post"
    _, cache = model.run_with_cache(tokens, names_filter=list(stages.values()))
    return {stage: model.unembed(model.ln_final(cache[name])) for stage, name in stages.items()}


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, argv)
    model, tokens = prepare(given, batch=16)
    stages = logit_lens(model, tokens)
    right = tokens[:, 1:, None]
    probability = torch.stack(
        [logits[:, :-1].softmax(-1).gather(-1, right)[..., 0].mean(0) for logits in stages.values()]
    )
    for stage, of in zip(stages, probability, strict=True):
        print(f"{stage:>12}: probability of the right token {of[PERIOD:].mean():.0%} when it is repeated")
    drawn, (axes,) = figure(1, width=8, height=1.5 + 0.3 * len(stages))
    title = f"probability of the right next token, after each layer ({PERIOD} tokens, twice)"
    heat(axes, probability, title=title, x="position", y="after", rows=list(stages), most=1)
    save(drawn, given.out / "logit_lens.png")


if __name__ == "__main__":
    main()
