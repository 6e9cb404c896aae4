"""The user's layer: its source file, how it is built and filled, and the process that it runs in."""
