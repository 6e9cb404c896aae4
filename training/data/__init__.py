"""From text to batches: corpora, the generator of stories, token files, and windows of tokens."""
