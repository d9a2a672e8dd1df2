"""One file in progress: from opening its source to a sealed sink.

A `Transfer` opens a source and a sink, and lanes move spans from one to the other with an engine. Compressed dumps,
filters, pipes and dumps that are read back are variants of it. `choose` picks the variant for a planned dump.

- `choose`: which transfer is used for a planned dump
- `transfer`, `reader`: raw dumps; the reading side, which loads and hashes spans in order
- `packed`, `packer`: dumps that are compressed by asyncdump, and their frames in order
- `piped`, `feeds`, `drains`: dumps that go through programs or into a pipe
- `filters`, `program`, `secrets`: filter processes, and their arguments kept out of messages
- `proof`, `unpack`: dumps that are read back and compared with their record; decompressed frames
- `copy`, `stream`: a copy outside of a run, as ``dd`` does: into a file, or between descriptors without offsets
- `salvage`: what can be read around unreadable pages; `blame`: which end of a transfer a failed call is about
- `resources`: what all transfers of a run share
"""
