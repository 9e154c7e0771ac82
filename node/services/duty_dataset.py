"""The duty of an auditor: fetch a pending dataset, audit it, report (docs/spec/datasets.md)."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from chain.codec import decode
from chain.errors import BlyanError, DecodeError, InputError, VerifyError, WorkerError
from chain.hashes import AUDIT, Hash32
from chain.records import DatasetRecord
from chain.transactions import AuditReport, Verdict
from corpus.licenses import check_license
from node.data import fetch_dataset
from node.services.audit_process import LENGTH_BYTES
from node.services.duty_context import DutyContext
from node.services.duty_plan import AuditDataset

# Findings beside those of corpus.audit: the dataset is not what its submission says.
NOT_AS_PROMISED = 64  # bytes that hash as named, and are not the manifest or documents promised
BAD_LICENSE = 65  # no SPDX expression that may be used
AUDIT_TIMEOUT_S = 300.0
_ROOT = str(Path(__file__).resolve().parents[2])


async def audit_dataset(context: DutyContext, duty: AuditDataset) -> None:
    """Report on a dataset. UnreachableError while it cannot be had: then there is no verdict."""
    record = context.state().dataset(duty.dataset)
    await context.send(await report_on(context, record))


async def report_on(context: DutyContext, record: DatasetRecord) -> AuditReport:
    try:
        manifest, text = await fetch_dataset(record, context.blob, context.keep)
    except (DecodeError, VerifyError):
        return refusal(record.id, NOT_AS_PROMISED)
    try:
        check_license(manifest.license)
    except InputError:
        return refusal(record.id, BAD_LICENSE)
    manifest_bytes = await context.blob(record.manifest, record.manifest_bytes)
    return await audit_apart(record.id, manifest_bytes, text)


def refusal(dataset: Hash32, finding: int) -> AuditReport:
    """A hard no that every auditor words alike."""
    root = AUDIT.hash(dataset, finding.to_bytes(2, "big"))
    return AuditReport(dataset, Verdict.NO, 0, (finding,), root)


async def audit_apart(dataset: Hash32, manifest: bytes, text: bytes) -> AuditReport:
    """Audit in a process of its own: one search over the text may hold Python for a second, and
    consensus cannot wait for that. WorkerError if the process fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "node.services.audit_process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": _ROOT},
        start_new_session=True,  # Ctrl-C is for the node
    )
    request = dataset + len(manifest).to_bytes(LENGTH_BYTES, "big") + manifest + text
    try:
        async with asyncio.timeout(AUDIT_TIMEOUT_S):
            answer, _ = await process.communicate(request)
        report: AuditReport = decode(AuditReport, answer)
    except (TimeoutError, OSError, BlyanError) as error:
        raise WorkerError(f"the audit of dataset {dataset.hex()} failed: {error}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    return report
