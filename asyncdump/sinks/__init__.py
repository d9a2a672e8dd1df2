"""Where bytes go: sinks for single dumps, and places that make sinks and publish them.

Engines write to a `Sink`. A `Place` makes a sink for each dump; when the dump is complete and durable, it gives it its
final name. A `Store` is a place that also keeps records, so that its dumps can be verified, restored and resumed.

- `place`: the protocols of sinks, places and stores
- `output`: from what the user specified (a directory, ``-``, ``scheme://...``) to a place
- `folder`, `opened`, `draft`, `file`, `logfile`: a directory, its temporary files, and its journal
- `lock`, `clash`: the lock of a directory; names that a filesystem treats as the same
- `memory`, `memfile`: a store in memory, its dumps and logs
- `pipe`: standard output
- `targets`: the targets of a restore
- `null`, `comparing`: places that keep nothing, to verify dumps or compare them with their sources
- `plain`: the base class of sinks that aren't files
"""
