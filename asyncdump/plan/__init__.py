"""The plan of a run as frozen values, and the checks before it is run.

A manifest is resolved against the filesystem: globs become sources, templates become names, and all errors are reported
up front. The result is a `Plan`, which a run executes.

- `plan`: the plan itself, and one planned dump; `summary` describes it
- `planner`, `destination`: make a plan from a manifest, and find all errors in it and in its output
- `destination`: checks the output: what exists there, what may be replaced, whether the dumps fit
- `globbing`, `look`: the files that a glob matches; a source as it is now
- `templates`: names of dumps
- `room`, `pools`: disk space for dumps; huge pages and disk space for targets
- `earlier`: which dumps of an earlier run still fit the plan
- `readback`: the plan to read dumps back, to verify or restore them
"""
