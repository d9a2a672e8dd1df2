"""For the tests of programs that use asyncdump: dumps without a disk.

Importing this module makes ``memory://NAME`` a valid output.
"""

from __future__ import annotations

from asyncdump.sinks.memory import SCHEME, MemoryPlace, open_memory
from asyncdump.sinks.output import register

__all__ = ["MemoryPlace"]

register(SCHEME, open_memory)
