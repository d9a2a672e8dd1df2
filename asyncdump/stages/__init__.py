"""What bytes pass through on their way: zstd frames in this process, filters in others."""
