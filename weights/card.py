"""Model cards: the ``README.md`` of a model folder, whose first lines the hub reads."""

from typing import Any

__all__ = ["CARD_FILE", "card"]

CARD_FILE = "README.md"


def card(body: str, **fields: Any) -> str:
    """Return a model card as huggingface_hub writes it: the fields that the hub reads, then the text.

    Args:
        body: the text, in Markdown.
        fields: fields of ``huggingface_hub.ModelCardData``, such as ``license`` and ``base_model``. Those that are None
            are left out.

    Example:
        >>> print(card("# mine", license="mit"))
        ---
        library_name: transformers
        license: mit
        pipeline_tag: text-generation
        tags:
        - gpt2
        - gptladder
        ---
        <BLANKLINE>
        # mine
        <BLANKLINE>
    """
    from huggingface_hub import ModelCard, ModelCardData

    common = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["gpt2", "gptladder"]}
    data = ModelCardData(**{**common, **fields})
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n"))
