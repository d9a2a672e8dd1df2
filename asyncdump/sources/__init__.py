"""Where bytes come from: files, block devices, and the memory of processes.

A source is described when a run is planned (a frozen `Source`), and opened again when it is dumped (an `OpenSource`,
which must still be the same). Engines read from it, or let the kernel move bytes from its descriptor.

- `source`: the protocol of an open source
- `opening`: which kind of source is opened by which module
- `file`, `describe`, `extents`: files and block devices, their kinds and sizes, their data and holes
- `unsized`: files of unknown size, which are read into memory first
- `process`, `owner`, `mappings`: a range of the memory of a process
"""
