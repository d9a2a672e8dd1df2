"""System calls that `os` lacks, what a worker thread keeps, and how fast a device is."""
