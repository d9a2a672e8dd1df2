"""One run in progress: its lanes, its events, its end.

A plan becomes a `Run`, which drives a `Scheduler` in a thread. Lanes take files from the `Queue` and transfer them; the
`Committer` makes sealed files durable and publishes them. Events go to the `Mailbox`, which a listener reads; outcomes
go to the report and the receipt.

- `run`: a run from the caller's side, with its thread, its report and its records
- `opening`: a run next to a block of code, and the handler of its events
- `scheduler`: what lanes and the committer do with files, retries, and how a run ends
- `crew`: the threads of a run, from their start to their end
- `queue`: the files that wait and those in progress
- `committer`: groups of sealed files on their way to their final names
- `keeper`, `stranger`: dumps that exist already, with a record or without one
- `job`: one dump in a run, and its outcome
- `telling`, `events`, `mailbox`, `tally`: events, their order, their queue, and a count of them
- `mappers`: which processes have the sources mapped
- `limits`: how many lanes a run may have
- `threads`: our own threads, and the tasks that wait for them
"""
