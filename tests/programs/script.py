"""A script: no event loop in sight."""

import sys
from pathlib import Path
from typing import assert_type

import asyncdump

folder = Path(sys.argv[1])

report = asyncdump.dump_sync(
    [f"{folder}/sources/*"], output=folder / "dumps", checksum="sha256", durable=False, on_event=print
)
assert_type(report, asyncdump.Report)
print(report)
if not report.ok:
    for file in report.failures:
        print(file.name, file.phase, file.error, file.error.hint if file.error is not None else "")
    sys.exit(1)

verification = asyncdump.verify_sync(folder / "dumps", against_source=True)
assert_type(verification, asyncdump.Verification)
verification.raise_for_failures()

restored = asyncdump.restore_sync(folder / "dumps", folder / "back", map={"ring_0": "elsewhere/ring"}, durable=False)
assert_type(restored, asyncdump.Report)
assert (folder / "back" / "elsewhere" / "ring").read_bytes() == (folder / "sources" / "ring_0").read_bytes()

recorded = asyncdump.read_receipt(folder / "dumps")
assert_type(recorded, asyncdump.Report)
assert [file.digest for file in recorded.files] == [file.digest for file in report.files]
