"""The bottom of the package: what is called of the kernel, and what is kept to call it well.

Engines, sources and sinks call `linux` with the buffer and pipe of a `lane`; how much they move in one call is decided
by the `pace` of the device.

- `linux`: system calls that `os` lacks, and which errnos mean "continue without it"
- `filesystems`: the traits of each filesystem that no call reveals, one row each
- `host`: what this process may use: cores, turns at the interpreter, open files
- `host`: how many cores and open files this process may use
- `filesystems`: the traits of filesystems that can't be tried
- `lane`: the buffer and the pipe that a worker thread keeps from file to file
- `pace`: the I/O size for each device, learned from how long the calls take
- `relay`: writing to a shared descriptor without waiting for its reader
- `memory`, `processes`: the memory of other processes, and which of them have a file mapped
"""
