"""The ladder: each layer is a rung, tried against reference layers before the next one stands on it.

Importing `rungs`, `climb`, `parity` or `mutants` needs the extra ``gptladder[reference]``.
"""
