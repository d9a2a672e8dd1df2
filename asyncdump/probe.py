"""Which methods the kernel accepts for a source and a destination, and how fast each is."""
