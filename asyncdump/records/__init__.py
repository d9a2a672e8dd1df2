"""What is written down of a run, and read back: reports, the journal, the receipt."""
