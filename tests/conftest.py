"""Settings for every test."""

import hypothesis
import torch

# Deadlines would fail tests on a busy machine; the same examples every time, so that a failure can be repeated.
hypothesis.settings.register_profile("ladder", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ladder")

torch.set_num_threads(min(2, torch.get_num_threads()))
