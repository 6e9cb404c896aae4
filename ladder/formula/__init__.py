"""GPT-2's formula, step by step, and where a trace of a layer has these steps."""
