"""Settings for every test."""

import os

# One thread for each process: the threads of several processes spin against each other. Tests that start processes of
# their own pass it on.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import torch

# Deadlines would fail tests on a busy machine; the same examples every time, so that a failure can be repeated.
hypothesis.settings.register_profile("ladder", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ladder")

torch.set_num_threads(1)
