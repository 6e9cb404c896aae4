"""The process that a user's layers run in: it may hang, crash or be hostile."""
