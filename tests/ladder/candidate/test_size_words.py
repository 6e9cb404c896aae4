"""Sizes are known by the words of their names; configurations may be nested, globals, or have fields of one letter."""

from pathlib import Path

import pytest

from gptladder.ladder import climb
from gptladder.ladder.candidate.aliases import canonical
from gptladder.ladder.candidate.size_words import side


@pytest.mark.parametrize(
    ("ours", "names"),
    [
        ("d_model", "embedded_dim n_embeddings dimEmbeddings model_channels residual_width token_embed_size"),
        ("n_heads", "heads_number count_of_heads attn_head_count"),
        ("d_head", "head_features dim_of_head head_channels"),
        ("d_mlp", "ff_layer_size n_hidden_ff mlp_units feed_forward_units"),
        ("d_vocab", "vocab_count total_vocab_size size_of_vocab"),
        ("n_ctx", "seq_length_max max_input_tokens max_sequence positional_encoding_max_pos"),
        ("n_layers", "layer_count n_decoders num_transformers transformer_layers"),
        (
            None,
            "batch_size max_new_tokens tokens_per_batch train_size layer_size block_dim pos_embed_dim context_dim "
            "forward_layer_size model embedding transformer head output_dim vocabulary_file n_experts",
        ),
    ],
)
def test_a_name_made_of_known_words_is_a_size(ours: str | None, names: str) -> None:
    assert {name: canonical(name) for name in names.split()} == dict.fromkeys(names.split(), ours)


@pytest.mark.parametrize(
    ("name", "which"),
    [("input_dim", "in"), ("dimIn", "in"), ("q_input_dim", "in"), ("n_out", "out"), ("out_features", "out")]
    + [(name, "") for name in ("output", "input_vocab_size", "hidden_dim")],
)
def test_the_side_of_a_width_is_known(name: str, which: str) -> None:
    assert side(name) == which


HEAD = "import torch\nfrom torch import nn\n"
ATTENTION = """
class Attention(nn.Module):
    def __init__(self, {arguments}):
        super().__init__()
        self.heads = {heads}
        self.qkv, self.project = nn.Linear({width}, 3 * {width}), nn.Linear({width}, {out})

    def forward(self, x):
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.project(z.transpose(1, 2).flatten(2))
"""
MLP = """
class MLP(nn.Module):
    def __init__(self, {arguments}):
        super().__init__()
        self.up, self.down = nn.Linear({width}, {hidden}), nn.Linear({hidden}, {out})

    def forward(self, x):
        return self.down(nn.functional.gelu(self.up(x), approximate="tanh"))
"""


def _passes(folder: Path, source: str) -> None:
    (folder / "layers.py").write_text(HEAD + source)
    result = climb(folder / "layers.py", copy_process=True, cases=4)
    assert result.passed, str(result)


@pytest.mark.parametrize(
    ("arguments", "width", "out"),
    [
        ("input_dim, output_dim, heads", "input_dim", "output_dim"),
        ("dim_in, dim_out, heads", "dim_in", "dim_out"),
        ("embedded_dim, heads", "embedded_dim", "embedded_dim"),
        ("q_input_dim, heads", "q_input_dim", "q_input_dim"),
    ],
)
def test_the_widths_of_attention_are_known_by_their_words(tmp_path: Path, arguments: str, width: str, out: str) -> None:
    _passes(tmp_path, ATTENTION.format(arguments=arguments, heads="heads", width=width, out=out))


@pytest.mark.parametrize(
    ("arguments", "width", "hidden", "out"),
    [
        ("in_dim, hidden_dim, out_dim", "in_dim", "hidden_dim", "out_dim"),
        ("input_size, hidden_units", "input_size", "hidden_units", "input_size"),
        ("in_channels, out_channels", "in_channels", "out_channels", "in_channels"),
        ("input_dim", "input_dim", "4 * input_dim", "input_dim"),
    ],
)
def test_the_widths_of_an_mlp_are_known_by_their_words(
    tmp_path: Path, arguments: str, width: str, hidden: str, out: str
) -> None:
    _passes(tmp_path, MLP.format(arguments=arguments, width=width, hidden=hidden, out=out))


@pytest.mark.parametrize(
    ("before", "width", "heads"),
    [
        ("", 'cfg["MODEL"]["embed_size"]', 'cfg["MODEL"]["num_heads"]'),
        ("", "cfg.transformer.n_embd", "cfg.transformer.n_head"),
        ("class GPTConfig:\n    C: int\n    h: int\n    dropout: float\n", "cfg.C", "cfg.h"),
    ],
)
def test_sections_and_letters_of_a_configuration_are_read(tmp_path: Path, before: str, width: str, heads: str) -> None:
    _passes(tmp_path, before + ATTENTION.format(arguments="cfg", heads=heads, width=width, out=width))


@pytest.mark.parametrize(
    "before",
    [
        "class Settings:\n    pass\n\ndef the_config():\n    return Settings()\n\nconfig = the_config()\n",
        "config = load_from_somewhere('config.yaml')\n",
        "config = dict(n_embd=64, n_head=4, block_size=8)\n",
        "from dataclasses import dataclass\n\n@dataclass\nclass Config:\n    n_embd: int = 64\n    n_head: int = 4\n\n"
        "config = Config()\n",
    ],
)
def test_a_configuration_that_classes_read_as_a_global_gets_the_sizes(tmp_path: Path, before: str) -> None:
    field = "config['{}']" if "dict(" in before else "config.{}"
    source = ATTENTION.format(
        arguments="unused=None", heads=field.format("n_head"), width=field.format("n_embd"), out=field.format("n_embd")
    )
    _passes(tmp_path, before + source)


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        ("embedding_size, query_key_size, heads", "assert query_key_size % heads == 0"),
        ("embedding_size, value_dim, heads", "value_dim = value_dim // heads * heads"),
    ],
)
def test_the_width_of_all_queries_may_be_meant_where_a_heads_fits_nothing(
    tmp_path: Path, arguments: str, made: str
) -> None:
    width = arguments.split(", ")[1]
    source = ATTENTION.format(arguments=arguments, heads="heads", width=width, out="embedding_size")
    _passes(tmp_path, source.replace("super().__init__()", f"super().__init__()\n        {made}"))


def test_a_layers_only_number_is_its_width(tmp_path: Path) -> None:
    _passes(tmp_path, MLP.format(arguments="size: int, drop=0.1", width="size", hidden="4 * size", out="size"))


def test_of_two_widths_of_a_table_the_one_that_counts_is_the_vocabulary(tmp_path: Path) -> None:
    table = "class Embedding(nn.Embedding):\n    def __init__(self, n_embed, d_embed):\n"
    _passes(tmp_path, f"{table}        super().__init__(n_embed, d_embed)\n")
