"""A folder of submissions, each judged on each rung in a sandbox of its own: ``gptladder grade``."""
