"""Model files: reading them safely, writing them whole, and fetching them from the hub."""
