"""One file under way: from its opening to a sealed sink."""
