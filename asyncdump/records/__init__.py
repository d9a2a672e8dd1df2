"""What is recorded about a run and read back: reports, the journal, the receipt.

The outcome of each dump is a `FileReport`. While a run is in progress, it is appended to the journal; at the end, all
of them are written to the receipt. Verifying, restoring and resuming read them back.

- `report`, `summary`: the outcome of a run and of each dump, as values and in words
- `verification`: the outcome of a verification
- `record`: one outcome as JSON, in versions 1 and 2
- `journal`: the records of a run in progress
- `writer`, `receipt`: the receipt and the digest lists as they are written; what is read back of them
- `standing`: what a record says about the dump as it is stored now
"""
