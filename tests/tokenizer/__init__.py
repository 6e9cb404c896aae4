"""Tests of the tokenizer package; a package itself, so that the files can share support modules."""
