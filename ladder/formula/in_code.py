"""GPT-2's steps in code: what to write where a layer has something else."""

import re

_GELU = "0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))"
_HIDDEN = "torch.ones(seq, seq).triu(1).bool()"
_NORM = "(x - mean) / torch.sqrt(variance + eps) * w + b"

# By the words of a step, without the block and the layer norm that it is of.
_CODE = {
    "the queries, keys and values": "x @ W_Q + b_Q, x @ W_K + b_K and x @ W_V + b_V, each split into heads",
    "the queries": "x @ W_Q + b_Q, split into heads",
    "the keys": "x @ W_K + b_K, split into heads",
    "the values": "x @ W_V + b_V, split into heads",
    "the scores q·k": "q @ k.transpose(-1, -2), where q and k are [batch, n_heads, seq, d_head]",
    "the scaled scores": "q @ k.transpose(-1, -2) / math.sqrt(d_head)",
    "the masked scores": f"scores.masked_fill({_HIDDEN}, -torch.inf)",
    "the attention pattern": "scores.softmax(dim=-1)",
    "the gathered values z": "pattern @ v, where pattern is [batch, n_heads, query, key]",
    "the output without b_O": "z.transpose(1, 2).flatten(2) @ W_O, where z is [batch, n_heads, seq, d_head]",
    "the output of attention": "z.transpose(1, 2).flatten(2) @ W_O + b_O, where z is [batch, n_heads, seq, d_head]",
    "the mean": "x.mean(dim=-1, keepdim=True)",
    "the input less its mean": "x - mean",
    "the variance": "(x - mean).pow(2).mean(dim=-1, keepdim=True)",
    "the variance plus eps": "variance + eps",
    "the standard deviation": "torch.sqrt(variance + eps)",
    "the normalised vector": "(x - mean) / torch.sqrt(variance + eps)",
    "the normalised vector times w": "(x - mean) / torch.sqrt(variance + eps) * w",
    "the output of ln1": _NORM,
    "the output of ln2": _NORM,
    "the output of ln_final": _NORM,
    "ln1": "x + attn(ln1(x))",
    "ln2": "x + mlp(ln2(x))",
    "ln_final": "unembed(ln_final(x))",
    "the hidden layer before the activation": "x @ W_in + b_in",
    "the hidden layer after the activation": f"{_GELU}, or F.gelu(x, approximate='tanh')",
    "the output without b_out": "hidden @ W_out",
    "the output of the MLP": "hidden @ W_out + b_out",
    "the stream after attention": "x + attn(ln1(x))",
    "the stream after block": "x + mlp(ln2(x)), where x is the stream after attention",
    "the token embedding": "W_E[tokens]",
    "the position embedding": "W_pos[:seq]",
    "the stream before the blocks": "W_E[tokens] + W_pos[:seq]",
}
_OUTPUT = {
    "embed": "W_E[tokens]",
    "pos-embed": "W_pos[:seq] for each sequence",
    "unembed": "x @ W_U + b_U",
    "layer-norm": _NORM,
    "attention": _CODE["the output of attention"],
    "mlp": _CODE["the output of the MLP"],
    "block": _CODE["the stream after block"],
    "model": "unembed(ln_final(x))",
}
# What is wrong, by how its words begin.
_FIXES = {
    "which keys each query sees": "Hide a key where key > query, and no other: scores.masked_fill("
    f"{_HIDDEN}, -torch.inf), or is_causal=True in F.scaled_dot_product_attention.",
    "the position": "Position i gets row i, in every sequence: W_pos[:seq].",
    "the rows of the table of positions": "Position i gets row i, in every sequence: W_pos[:seq].",
    "the order of": "Move axes by transpose or permute: view and reshape only split an axis, or merge neighbours.",
    "the gradient, which is cut": "Leave the graph whole there: no .detach(), .data or torch.no_grad().",
    "the blocks": "Run all of them, each on what the one before gave: for block in blocks: x = block(x).",
}

# What is wrong, by words of a sentence about it.
_BY_DETAIL = {
    " it makes numbers from ": "Leave it out: GPT-2 limits none of its numbers.",
    "The output is complete before it": "Return that output as it is.",
    " a second time.": "Add it once.",
    " subtracts ": "Add it.",
}


def fix_of(wrong: str, detail: tuple[str, ...], rung: str) -> str:
    """Return what to write in the place of what is wrong, in a sentence; empty if that is not known.

    Args:
        wrong: what is wrong in a layer, in the words of a finding.
        detail: sentences about it.
        rung: the layer's.
    """
    for words, fix in _FIXES.items():
        if wrong.startswith(words):
            return fix
    for words, fix in _BY_DETAIL.items():
        if any(words in each for each in detail):
            return fix
    found = re.search(r"GPT-2 has (.+?) next", " ".join((wrong, *detail)))
    code = in_code(found[1], rung) if found else ""
    return f"In code: {code}." if code else ""


def in_code(step: str, rung: str) -> str:
    """Return a step of GPT-2 in code; empty if there is none for it.

    Example:
        >>> in_code("the scaled scores (block 1)", "model")
        'q @ k.transpose(-1, -2) / math.sqrt(d_head)'
    """
    if "in GELU" in step:
        return _GELU
    if step == "the output":
        return _OUTPUT[rung]
    bare = re.sub(r" over d_model| \(block \d+\)$| \d+$", "", step)
    return _CODE.get(bare) or _CODE.get(re.sub(r" of ln\w+$", "", bare), "")
