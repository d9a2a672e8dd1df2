"""Frozen values and plain functions that every other package may use.

No module here does I/O.

- `values`: a source, a span, a range of unreadable bytes, and the settings
- `digest`, `blocks`: xxh128, blake3 and sha256 of files, and a digest of each block
- `marks`: how version 1 records locate damage
- `names`: the names of asyncdump's own files, and which names dumps can't have
- `size`, `tables`: sizes and summaries, as people read and write them
- `stop`: the flag that stops a run
"""
