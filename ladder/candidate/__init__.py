"""The user's layer: its source file, how it is built, filled and called, and what it computes."""
