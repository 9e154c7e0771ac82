"""`python -m node.services.audit_process`: one audit, dataset on stdin, report on stdout.

stdin: dataset id (32 bytes), length of the manifest (4, big-endian), manifest, text.
stdout: encode(AuditReport). Nothing on stdout means that the audit failed; stderr says why.
"""

from __future__ import annotations

import os
import sys

from chain.codec import encode
from chain.hashes import Hash32
from chain.transactions import AuditReport
from corpus.audit import audit
from corpus.dataset import DatasetManifest, decode_manifest

LENGTH_BYTES = 4
NICE = 10  # consensus comes first


def audit_request(request: bytes) -> AuditReport:
    """The report on the dataset in a request that the node has verified."""
    dataset, start = Hash32(request[:32]), 32 + LENGTH_BYTES
    end = start + int.from_bytes(request[32:start], "big")
    manifest: DatasetManifest = decode_manifest(request[start:end])
    found = audit(dataset, manifest, request[end:])
    return AuditReport(dataset, found.verdict, found.score, found.findings, found.report_root)


if __name__ == "__main__":
    os.nice(NICE)
    sys.stdout.buffer.write(encode(audit_request(sys.stdin.buffer.read())))
