"""One run under way: its lanes, its events, its end."""
