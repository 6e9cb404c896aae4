"""Direct logit attribution: how much each head and MLP adds to the right token's logit, less a wrong one's.

    python demos/direct_logit_attribution.py [--model gpt2]

The final layer norm divides by one number for each position; with that number kept as it was, the logits are linear in
what each part has added to the residual stream, and a difference of logits is a sum over the parts (Elhage et al. 2021;
in TransformerLens, ``cache.stack_head_results`` and ``cache.logit_attrs``).
"""

from collections.abc import Sequence

import torch
from einops import einsum
from repeated_tokens import PERIOD, arguments, figure, heat, prepare, save
from torch import Tensor

from gptladder import GPT2


@torch.inference_mode()
def direct_logit_attribution(model: GPT2, tokens: Tensor, right: Tensor, wrong: Tensor) -> dict[str, Tensor]:
    """What each part adds [batch seq] to ``logits[right] - logits[wrong]``, both [batch seq]. The sum is exact.

    Parts are ``L0H0`` …, ``L0 MLP`` …, ``embed``, ``pos_embed`` and ``bias``, which no input changes. The gain of the
    final layer norm is counted in; ``logit_attrs`` leaves it out unless it has been folded into ``W_U``.
    """
    _, cache = model.run_with_cache(tokens)
    parts = {"embed": cache["embed"], "pos_embed": cache["pos_embed"]}
    bias = torch.zeros_like(model.ln_final.b)
    for layer, block in enumerate(model.blocks):
        added = einsum(
            cache["z", layer],
            block.attn.W_O,
            "batch seq n_heads d_head, n_heads d_head d_model -> n_heads batch seq d_model",
        )
        parts |= {f"L{layer}H{head}": each for head, each in enumerate(added)}
        parts[f"L{layer} MLP"] = cache["mlp_out", layer]
        bias = bias + block.attn.b_O
    parts["bias"] = bias.expand_as(cache["embed"])

    direction = model.unembed.W_U.T[right] - model.unembed.W_U.T[wrong]
    scale = cache["scale", None, "ln_final"]

    def attributed(part: Tensor) -> Tensor:
        normalized = (part - part.mean(-1, keepdim=True)) / scale * model.ln_final.w
        return (normalized * direction).sum(-1)

    found = {name: attributed(part) for name, part in parts.items()}
    found["bias"] = found["bias"] + direction @ model.ln_final.b
    if model.unembed.b_U is not None:
        found["bias"] = found["bias"] + model.unembed.b_U[right] - model.unembed.b_U[wrong]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, argv)
    model, tokens = prepare(given, batch=16)
    # The right token is the next one; the wrong one, for the sake of an example, the one after that.
    given_tokens, right, wrong = tokens[:, :-2], tokens[:, 1:-1], tokens[:, 2:]
    found = {
        name: part[:, PERIOD:].mean()
        for name, part in direct_logit_attribution(model, given_tokens, right, wrong).items()
    }
    layers, heads = range(model.config.n_layers), range(model.config.n_heads)
    by_head = torch.stack([torch.stack([found[f"L{layer}H{head}"] for head in heads]) for layer in layers])
    rest = {name: value for name, value in found.items() if "H" not in name}
    print(
        f"the right token's logit is above the wrong one's by {sum(found.values()):.2f} when it is repeated, of which"
    )
    print(f"  heads {by_head.sum():.2f}, " + ", ".join(f"{name} {value:.2f}" for name, value in rest.items()))
    drawn, axes = figure(2)
    heat(axes[0], by_head, title="added by each head (logits)", x="head", y="layer")
    axes[1].barh(list(rest), [value.item() for value in rest.values()])
    axes[1].set(title="added by the rest", xlabel="logits")
    axes[1].invert_yaxis()
    save(drawn, given.out / "direct_logit_attribution.png")


if __name__ == "__main__":
    main()
