"""Study folder: its files, and the records of which shards are finished.

A shard is finished once its record is in manifest/STAGE/. The record is written last, names the shard's files with
their checksums and row counts, and carries the fingerprint of their inputs. An interrupted run is therefore simply
started again. A record that is damaged, or was not written by this version, counts as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from patrolscope.pipeline.errors import SettingsError, StageNotRunError, StorageError
from patrolscope.pipeline.study.config import Settings, dump_settings, parse_settings
from patrolscope.pipeline.study.files import LOCK_FILE, Digest, StudyFiles, is_inside, modified_at, study_files
from patrolscope.pipeline.study.lock import hold_folder, hold_store
from patrolscope.pipeline.study.remote import contents_of

SETTINGS_FILE = "study.yaml"


def fingerprint(*parts: object) -> str:
    """Return the digest of plain values: JSON types, dates, and nested tuples."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Output:
    """Files and counts that a stage returns for one shard."""

    files: tuple[str, ...]  # relative to the study's root
    rows_in: int
    rows_out: int
    ledger: tuple[dict[str, Any], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)  # for the plans of later stages, such as rows by hour


@dataclass(frozen=True, kw_only=True)
class Record(Output):
    """Manifest entry of a finished shard: its output with name, fingerprint, and time."""

    shard: str
    fingerprint: str
    inputs: dict[str, str] = field(default_factory=dict)  # digests of the parts of the fingerprint, by name
    digests: dict[str, Digest] = field(default_factory=dict)  # of the files
    seconds: float = 0.0

    def files_in(self, folder: str) -> list[str]:
        """Return the files of the shard in a folder."""
        return [name for name in self.files if name.startswith(f"{folder}/")]

    @property
    def content(self) -> str:
        """Digest of the output, on which later stages depend: rebuilding the same output leaves them up to date.

        Facts are left out, as later stages put those that matter to them into their own work.
        """
        known = {name: digest.checksum for name, digest in self.digests.items()}
        files = [(name, known.get(name, self.fingerprint)) for name in self.files]
        return fingerprint(files or self.fingerprint, self.rows_in, self.rows_out, self.ledger)

    def to_json(self) -> str:
        """Return the record as text with its own checksum."""
        content = json.dumps(self.__dict__, sort_keys=True, default=list)
        return f"{content}\n{fingerprint(content)}\n"

    @classmethod
    def from_json(cls, text: bytes) -> Record:
        """Return the record that a text holds.

        Raises
        ------
        StorageError
            If the text is cut, damaged, of another version, or names files outside the study.
        """
        content, _, checksum = text.partition(b"\n")
        try:
            record = _RECORD.validate_json(content)
        except ValidationError as error:
            raise StorageError(f"not a record of this version: {error.errors()[0]['msg']}") from error
        if not all(map(is_inside, record.files)):
            raise StorageError("a record of files outside the study")
        if checksum.strip().decode(errors="replace") != fingerprint(content.decode()):
            raise StorageError("a record whose checksum does not match its content")
        return record


_RECORD = TypeAdapter(Annotated[Record, ConfigDict(extra="forbid")])


@dataclass(frozen=True)
class Study(StudyFiles):
    """Study folder with its settings and records."""

    def commit(self, stage: str, record: Record) -> None:
        """Write the record of a shard whose files are complete."""
        self.write_bytes(record.to_json().encode(), self.record_file(stage, record.shard))

    @staticmethod
    def record_file(stage: str, shard: str) -> str:
        """Return the path of the record of a shard, relative to the root."""
        return f"manifest/{stage}/{shard}.json"

    def remove(self, name: str) -> None:
        """Remove a file, given relative to the root."""
        self.fs.rm_file(self.path(name))

    def records(self, stage: str) -> dict[str, Record]:
        """Return the records of a stage by name of the shard, sorted."""
        names = self._record_files(stage)
        found: dict[str, Record] = {}
        for name, text in zip(names, contents_of(self.fs, [self.path(name) for name in names]), strict=True):
            with contextlib.suppress(StorageError):  # counted by `damaged_records`
                record = Record.from_json(text)
                if name == self.record_file(stage, record.shard):
                    found[record.shard] = record
        return found

    def damaged_records(self, stage: str, records: Iterable[str]) -> list[str]:
        """Return the files of a stage's records that are not among the readable ones.

        Parameters
        ----------
        stage : str
            Name of the stage.
        records : iterable of str
            Shards of `records`, so that none is read twice.
        """
        readable = {self.record_file(stage, shard) for shard in records}
        return [name for name in self._record_files(stage) if name not in readable]

    def _record_files(self, stage: str) -> list[str]:
        return [name for name in self.find(f"manifest/{stage}") if name.endswith(".json")]

    def record(self, stage: str) -> Record:
        """Return the record of a stage with a single shard.

        Raises
        ------
        StageNotRunError
            If the stage has not run. The message names the command that runs it.
        """
        records = list(self.records(stage).values())
        if not records:
            raise StageNotRunError(
                f"stage {stage} of {self.root} has not run yet; run `patrolscope run --study {self.root}`"
            )
        return records[0]

    def finished_at(self, stage: str) -> list[datetime]:
        """Return the sorted times at which shards of a stage were finished, as far as the file system has them."""
        if not self.exists("manifest", stage):
            return []
        found = self.fs.find(self.path("manifest", stage), detail=True)
        times = (modified_at(info) for name, info in found.items() if str(name).endswith(".json"))
        return sorted(time for time in times if time is not None)

    def stages(self) -> list[str]:
        """Return the names of stages with records, sorted."""
        if not self.exists("manifest"):
            return []
        return sorted(
            str(name).rstrip("/").rsplit("/", 1)[-1] for name in self.fs.ls(self.path("manifest"), detail=False)
        )

    def discard(self, stage: str, record: Record, keep: frozenset[str] = frozenset()) -> None:
        """Remove the record of a shard and its files, except for those in `keep`.

        Settings, lock, and records stay, whatever a record names.

        Parameters
        ----------
        stage : str
            Name of the stage.
        record : Record
            Record to remove.
        keep : frozenset of str
            Files of other shards, relative to the root.
        """
        self.remove(self.record_file(stage, record.shard))
        for name in record.files:
            spared = name in keep or name in (SETTINGS_FILE, LOCK_FILE) or name.startswith("manifest/")
            if not spared and self.exists(name):
                self.remove(name)

    def sweep(self, folder: str, keep: frozenset[str]) -> None:
        """Remove empty folders, and files that are not in `keep`: interrupted or earlier runs left them."""
        for name in self.find(folder):
            if name not in keep:
                self.remove(name)
        if self.is_local and self.exists(folder):
            # The content of a folder before the folder.
            for path, _, _ in os.walk(self.path(folder), topdown=False):
                if not os.listdir(path):  # noqa: PTH208 - the path is a string of the file system
                    os.rmdir(path)  # noqa: PTH106

    @contextlib.contextmanager
    def lock(self) -> Iterator[Study]:
        """Hold the study against a second run, and yield the study as this run writes into it.

        Raises
        ------
        StudyLockedError
            If another run holds it. The message names that run.
        """
        mine = replace(self, run=uuid.uuid4().hex)
        path = f"{self.base}/{LOCK_FILE}"  # replaced, not followed, if it is a link
        self.path(f"{LOCK_FILE}.held")
        hold = partial(hold_folder, Path(path)) if self.is_local else partial(hold_store, self.fs, path)
        with hold(self.root, mine.run):
            yield mine


def study_at(root: str | Path, settings: Settings) -> Study:
    """Return the study at a path or URL with these settings. Nothing is read or written."""
    url = str(root)
    return Study(root=url if "://" in url else str(Path(url).resolve()), settings=settings)


def read_settings(root: str | Path) -> tuple[str, str]:
    """Return the text of study.yaml, and its path.

    Raises
    ------
    SettingsError
        If there is no study.yaml, or it is not UTF-8.
    """
    url = str(root)
    fs, base = study_files(url)
    where = f"{base}/{SETTINGS_FILE}"
    if not fs.isfile(where):
        raise SettingsError(
            f"{url} is not a study: it has no {SETTINGS_FILE}; create one with `patrolscope simulate {url} --images "
            f"100000`, or with `patrolscope init {url}` for your own data"
        )
    try:
        return fs.cat_file(where).decode("utf-8-sig"), where
    except UnicodeDecodeError as error:
        raise SettingsError(f"{where} is not UTF-8 ({error}); save it as UTF-8") from error


def open_study(root: str | Path) -> Study:
    """Return the study at a path or URL.

    Raises
    ------
    SettingsError
        If there is no study.yaml, or it is invalid.
    """
    text, where = read_settings(root)
    return study_at(root, parse_settings(text, where=where))


def create_study(root: str | Path, settings: Settings) -> Study:
    """Write study.yaml, and return the study. An existing study gets these settings."""
    study = study_at(root, settings)
    study.write_bytes(dump_settings(settings).encode(), SETTINGS_FILE)
    return study
