"""Frozen values and plain functions that everything may use."""
