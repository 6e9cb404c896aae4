"""Tests of weight formats."""
