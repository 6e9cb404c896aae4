"""Judge one submission on one rung."""
