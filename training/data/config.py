"""What a run is told about its text."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, and how it becomes tokens."""

    corpus: str = "stories"
    """"stories" (made here by a seeded generator), "tinystories" (fetched from the hub), or a text file or folder."""
    fraction: float = 1.0
    """Share of the hub's TinyStories that is used."""
    stories_mb: float = 20.0
    """Megabytes of text that the generator of stories writes."""
    tokenizer: str = "gpt2"
    """"gpt2", "bpe" (learnt from the text), "char" (its characters), or a folder with a tokenizer."""
    vocab_size: int = 4096
    """Tokens of a "bpe" tokenizer."""
    val_fraction: float = 0.1
    """Share of the tokens, at the end of the text, that is kept for validation."""
    data_dir: str = "data"
    """Where prepared data is kept and looked for."""

    def __post_init__(self) -> None:
        for name in ("stories_mb", "vocab_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}; it must be above 0 and at most 1")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction is {self.val_fraction}; it must be between 0 and 1")
