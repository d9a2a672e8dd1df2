"""Benchmarks of asyncdump: one command a question, peers beside us in one run. See ``python -m bench --help``."""
