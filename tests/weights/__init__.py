"""Tests of weights: a package, so that its modules can share functions."""
