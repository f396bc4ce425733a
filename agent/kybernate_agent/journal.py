"""What the agent was doing, so that kill -9 at any point ends, after a restart, in a true state.

Two tables. `instance` holds what is known of each instance between verbs: its workload, pod, tier, epoch, history.
`step` holds the verb in flight: a row is written *before* each step is done and all rows of a verb go when the verb
ends, in the same transaction that changes `instance`. After a restart the last row says what may or may not have
happened; `recover.py` compares it with the keeper (the truth about processes) and the store (the truth about images).

SQLite in WAL mode with synchronous=NORMAL: a commit survives the death of the process at once, and costs about 0.1 ms,
but a power cut may take the last ones, all that came after the last `synced`. Two steps have to be on the disk before
what follows: that images are about to be committed, else a journal that knows of no park would start cold beside them;
and that they are about to go, else one that still says parked would call them lost.

`synced` is for a thread's patience: right after a dump gigabytes wait for the same disk, and whoever calls waits with
them, while the event loop has packets to answer. A commit lies in the log file `-wal` when it returns, so that one file
is synced. A checkpoint meanwhile changes nothing: it syncs the log, then the database, before the log begins again.
Source: SQLite, "Write-Ahead Logging" and "PRAGMA synchronous".
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from kybernate.errors import ExternalError
from kybernate_agent import clock
from kybernate_agent.instance import Record

SCHEMA = """
create table if not exists instance (id text primary key, record blob not null);
create table if not exists step (
    number integer primary key autoincrement, instance text not null, verb text not null, step text not null,
    epoch integer not null, at real not null, detail text not null);
create index if not exists step_instance on step (instance);
pragma user_version = 1;
"""


class Step(msgspec.Struct, frozen=True):
    """One row of the journal: `verb` and `step` name what was about to be done."""

    instance: str
    verb: str
    step: str
    epoch: int
    at: float
    detail: dict[str, Any]


class JournalError(ExternalError):
    """{path} cannot be written: {cause}. Free space on its disk; nothing goes to sleep until then."""


class Journal:
    """The journal of one agent. Not for use from several threads. Opening it and what writes raise JournalError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder_synced = False
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            if self._db.execute("pragma user_version").fetchone() == (0,):
                self._db.executescript(SCHEMA)  # only then: an agent has to start on a full disk, too
        except sqlite3.Error as error:
            raise JournalError(path=path, cause=str(error)) from error
        path.chmod(0o600)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            try:
                self._db.execute("begin immediate")
                yield
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("rollback")
                raise
        except sqlite3.Error as error:
            raise JournalError(path=self._path, cause=str(error)) from error

    async def synced(self) -> None:
        """What was written before this call outlives a power cut once it returns. Raises JournalError."""
        try:
            await asyncio.to_thread(self._sync)
        except OSError as error:
            raise JournalError(path=self._path, cause=str(error)) from error

    def _sync(self) -> None:
        """For a thread: it touches files, and not the database.

        The log may be opened and closed beside SQLite, which keeps no lock on it; on the database and `-shm` it does,
        and closing those would take its locks away (fcntl(2)).
        """
        _fsync(f"{self._path}-wal")
        if not self._folder_synced:  # the log's name in it: the file stays for as long as the journal is open
            _fsync(self._path.parent)
            self._folder_synced = True

    def step(self, instance: str, verb: str, step: str, epoch: int, **detail: Any) -> None:
        """Say that `step` of `verb` is about to be done."""
        with self._transaction():
            self._db.execute(
                "insert into step (instance, verb, step, epoch, at, detail) values (?, ?, ?, ?, ?, ?)",
                (instance, verb, step, epoch, time.time(), msgspec.json.encode(detail).decode()),
            )

    def settle(self, record: Record) -> None:
        """The verb in flight, if any, is over: forget its steps and keep what is now true."""
        with self._transaction():
            self._db.execute("delete from step where instance = ?", (record.id,))
            self._save(record)

    def save(self, record: Record) -> None:
        """Keep what is now known, in the midst of a verb or between verbs."""
        with self._transaction():
            self._save(record)

    def _save(self, record: Record) -> None:
        self._db.execute(
            "insert or replace into instance (id, record) values (?, ?)", (record.id, msgspec.json.encode(record))
        )

    def forget(self, instance: str) -> None:
        """The instance is gone for good."""
        with self._transaction():
            self._db.execute("delete from step where instance = ?", (instance,))
            self._db.execute("delete from instance where id = ?", (instance,))

    def records(self) -> list[Record]:
        rows = self._db.execute("select record from instance order by id").fetchall()
        records = [msgspec.json.decode(blob, type=Record) for (blob,) in rows]
        for record in records:
            record.not_later_than(clock.STARTED)
        return records

    def steps(self, instance: str) -> list[Step]:
        """The steps of the verb in flight, oldest first; empty between verbs."""
        rows = self._db.execute(
            "select instance, verb, step, epoch, at, detail from step where instance = ? order by number", (instance,)
        ).fetchall()
        return [Step(i, v, s, e, a, msgspec.json.decode(d)) for i, v, s, e, a, d in rows]


def _fsync(path: Path | str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
