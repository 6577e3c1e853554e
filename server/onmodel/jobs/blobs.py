# SPDX-License-Identifier: GPL-3.0-or-later
"""Files named by the SHA-256 of their bytes: maps and references come in, drawings go out.

A name is 64 lower-case hex digits and nothing else ever becomes part of a path, so there is no way
out of the folder. A blob appears under its name only when it is whole (temporary file, then
rename); a reader checks it against its name again, so a damaged disk is found, not drawn.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import stat
import time
from pathlib import Path
from typing import IO

from onmodel.jobs import images

log = logging.getLogger(__name__)

max_blob_bytes = 64 * 1024 * 1024
hash_pattern = r"^[0-9a-f]{64}$"
_hash = re.compile(r"[0-9a-f]{64}")
# O_BINARY and O_NOFOLLOW each exist on some systems only.
_read_flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_write_flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_disk_full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BlobError(Exception):
    """A blob that cannot be taken or given. code: short and stable; fix: what a person can do."""

    def __init__(self, code: str, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix


def is_disk_full(error: OSError) -> bool:
    """Whether an operating system error says that there is no room to write."""
    return error.errno in _disk_full


def disk_full_error() -> BlobError:
    """The sentence for a full disk."""
    return BlobError(
        "disk_full",
        "The disk of the Onmodel data folder is full.",
        "Free some space on it and try again; nothing finished is lost.",
    )


def check_hash(sha256: str) -> str:
    """`sha256` itself, or BlobError "bad_hash"."""
    if not _hash.fullmatch(sha256):
        raise BlobError("bad_hash", "A blob's name must be 64 lower-case hex digits.")
    return sha256


class BlobWriter:
    """One blob on its way in: `write` chunks, then `commit`, always `close`.

    Chunks are hashed and checked as they come, so nothing is read twice.
    """

    def __init__(self, store: BlobStore, sha256: str, durable: bool) -> None:
        self._store = store
        self._sha256 = check_hash(sha256)
        self._durable = durable
        self._digest = hashlib.sha256()
        self._head = b""
        self._size = 0
        self._temporary = store.incoming / f"{secrets.token_hex(16)}.part"
        self._descriptor = os.open(self._temporary, _write_flags, 0o600)

    def write(self, chunk: bytes) -> None:
        """Adds bytes. Raises BlobError "too_large" or "disk_full"."""
        self._size += len(chunk)
        if self._size > max_blob_bytes:
            raise BlobError(
                "too_large",
                f"This file is over {max_blob_bytes >> 20} MB, the most the server takes.",
                "Send a smaller image.",
            )
        if len(self._head) < images.head_bytes:
            self._head += chunk[: images.head_bytes - len(self._head)]
        self._digest.update(chunk)
        try:
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            if is_disk_full(error):
                raise disk_full_error() from error
            raise

    def commit(self) -> None:
        """Puts the blob under its name. Raises BlobError "hash_mismatch", "bad_image", "disk_full".

        A durable blob is on the disk, not only in the system's cache, when this returns.
        """
        if self._digest.hexdigest() != self._sha256:
            raise BlobError(
                "hash_mismatch",
                f"The {self._size} bytes that arrived are not the ones that were announced.",
                "The transfer was damaged or cut short; send the file again.",
            )
        try:
            images.read_header(self._head)
        except images.ImageError as error:
            raise BlobError("bad_image", error.message, error.fix) from error
        final = self._store.path_of(self._sha256)
        try:
            if self._durable:
                os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
            # 256 folders keep each one small; made on first use.
            final.parent.mkdir(mode=0o700, exist_ok=True)
            self._place(final)
            if self._durable:
                _sync_folder(final.parent)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full_error() from error
            raise

    def _place(self, final: Path) -> None:
        if final.parent.is_symlink():
            raise BlobError(
                "bad_folder",
                f"The data folder's {final.parent.name} is a link and not a folder.",
                "Remove the link; the server writes into its own folder only.",
            )
        try:
            self._temporary.replace(final)
        except PermissionError:
            # Windows: the same blob is being read just now, so it is there already.
            if not self._store.has(self._sha256):
                raise

    def close(self) -> None:
        """Ends the transfer; what was not committed is removed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._temporary.unlink(missing_ok=True)


class BlobStore:
    """The folder of blobs: `<root>/<first two digits>/<the other 62>`, mode 0700."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self.incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.name == "posix":
            self.root.chmod(0o700)

    def path_of(self, sha256: str) -> Path:
        """Where the blob lies or would lie."""
        check_hash(sha256)
        return self.root / sha256[:2] / sha256[2:]

    def writer(self, sha256: str, durable: bool = False) -> BlobWriter:
        """A writer for a blob of this name. Raises BlobError "bad_hash" or "disk_full"."""
        try:
            return BlobWriter(self, sha256, durable)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full_error() from error
            raise

    def has(self, sha256: str, touch: bool = False) -> bool:
        """Whether the blob is here. touch: mark it as wanted, so that pruning spares it a day."""
        path = self.path_of(sha256)
        try:
            found = _is_own_file(path)
            if found and touch:
                os.utime(path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except NotImplementedError:  # Windows has no utime without following links
            os.utime(path)
        return found

    def put(self, data: bytes) -> str:
        """Stores an image durably and returns its hash. Raises BlobError."""
        sha256 = hashlib.sha256(data).hexdigest()
        if self.has(sha256):
            return sha256
        writer = self.writer(sha256, durable=True)
        try:
            writer.write(data)
            writer.commit()
        finally:
            writer.close()
        return sha256

    def open(self, sha256: str) -> tuple[IO[bytes], int]:
        """The open file and its size in bytes; follows no link. Raises BlobError "no_blob"."""
        path = self.path_of(sha256)
        try:
            if not _is_own_file(path):
                raise FileNotFoundError(path)
            descriptor = os.open(path, _read_flags)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _missing(sha256) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _missing(sha256) from error
            raise
        return os.fdopen(descriptor, "rb"), os.fstat(descriptor).st_size

    def head(self, sha256: str, size: int = images.head_bytes) -> bytes:
        """The first bytes. Raises BlobError "no_blob"."""
        file, _ = self.open(sha256)
        with file:
            return file.read(size)

    def read(self, sha256: str) -> bytes:
        """The bytes, checked. Raises BlobError "no_blob", or "damaged" and removes the file."""
        file, _ = self.open(sha256)
        with file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() != sha256:
            self.path_of(sha256).unlink(missing_ok=True)
            raise BlobError(
                "damaged",
                f"The stored image {sha256[:12]} was damaged on the disk and has been removed.",
                "Submit the shot again; the image will be sent again.",
            )
        return data

    def path(self, sha256: str) -> Path:
        """The file of a blob that is here. Raises BlobError "no_blob"."""
        file, _ = self.open(sha256)
        file.close()
        return self.path_of(sha256)

    def prune(self, keep: set[str], older_than: float) -> int:
        """Removes blobs not in `keep` and last wanted over `older_than` seconds ago; how many."""
        limit = time.time() - older_than
        removed = 0
        for folder in self.root.iterdir():
            for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
                name = folder.name + path.name
                if name in keep or path.lstat().st_mtime > limit:
                    continue
                path.unlink(missing_ok=True)
                removed += 1
        if removed:
            log.info("Removed %d blobs that nothing refers to.", removed)
        return removed


def _is_own_file(path: Path) -> bool:
    """A plain file in a folder that is no link. Raises FileNotFoundError."""
    return stat.S_ISREG(path.lstat().st_mode) and not path.parent.is_symlink()


def _missing(sha256: str) -> BlobError:
    return BlobError(
        "no_blob",
        f"The server has no image {sha256[:12]}.",
        "Submit the shot again; the images it needs will be sent.",
    )


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; only POSIX can, and only POSIX needs it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
