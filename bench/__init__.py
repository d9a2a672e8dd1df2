"""Benchmarks of asyncdump: each command compares it with other programs in one run. See ``python -m bench --help``."""
