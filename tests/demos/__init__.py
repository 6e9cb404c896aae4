"""Tests of the demos: a package, so that its modules can share names."""
