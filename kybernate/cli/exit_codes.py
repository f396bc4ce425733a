"""What each exit status means. They are the errors' own (`kybernate.errors`), so scripts can tell them apart."""

from __future__ import annotations

from kybernate.errors import (
    DeadlineError,
    ExternalError,
    InvalidError,
    KybernateError,
    NotFoundError,
    RefusedError,
    StateLostError,
)

UNHEALTHY = 5
INTERRUPTED = 130
NO_AGENT = 3

MEANINGS: dict[int, str] = {
    0: "done",
    KybernateError.exit_code: "something unforeseen went wrong: a defect",
    InvalidError.exit_code: "the input is wrong: arguments, a manifest, a configuration",
    NO_AGENT: "no agent answers at the socket",
    NotFoundError.exit_code: "there is no such workload, instance or file",
    UNHEALTHY: "`doctor` found something that keeps workloads from sleeping or waking",
    RefusedError.exit_code: "the step is not possible now; nothing was changed",
    DeadlineError.exit_code: "something did not answer in time; what was ordered may still happen",
    25: "there is no room in the tier store",
    26: "the workload's processes cannot be dumped and restored as they are",
    ExternalError.exit_code: "something outside failed: CRIU, runc, containerd, the kernel",
    StateLostError.exit_code: "a state that should exist is gone or damaged",
    INTERRUPTED: "interrupted from the keyboard",
}


def table() -> str:
    """For `kybernate help exit-codes`."""
    lines = [f"  {code:>3}  {meaning}" for code, meaning in sorted(MEANINGS.items())]
    return "\n".join(["Exit statuses of kybernate:", "", *lines, "", "`exec` ends with the status of its command."])
