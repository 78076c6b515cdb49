"""The certificate that the storage SCP shows now: taken anew when its files change, and never given up for a broken one."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from asyncdicom.errors import ConfigurationError
from asyncdicom.scp.access import ServerTLS

logger = logging.getLogger(__name__)

# How often, in seconds, a connection has the files looked at, and how long it waits for that at most: a file system that hangs
# is no reason to let nobody in.
_LOOK_EVERY = 2.0
_PATIENCE = 1.0

Stamp = tuple[tuple[int, int, int] | None, ...]


class CurrentCertificate:
    """The TLS context for new connections; those that stand keep what they have.

    Files are read on a thread of its own.

    :param tls: where the files are
    """

    def __init__(self, tls: ServerTLS) -> None:
        self._tls = tls
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="asyncdicom-certificate")
        self._context: ssl.SSLContext | None = None
        # Of the files as they were when they were last read, whatever came of it.
        self._stamp: Stamp = ()
        self._look_at = 0.0
        self._looking: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Read the files for the first time.

        :raises ConfigurationError: when one is missing or is not what it should be
        """
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._read)
        except BaseException:
            self.close()
            raise
        self._look_at = time.monotonic() + _LOOK_EVERY

    def close(self) -> None:
        """Give the thread back."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def context(self) -> ssl.SSLContext:
        """The context for a connection that has just come.

        :raises RuntimeError: before :meth:`open`
        """
        if time.monotonic() >= self._look_at and (self._looking is None or self._looking.done()):
            self._look_at = time.monotonic() + _LOOK_EVERY
            self._looking = asyncio.get_running_loop().run_in_executor(self._executor, self._look)
            await asyncio.wait([self._looking], timeout=_PATIENCE)
        if self._context is None:
            raise RuntimeError("the certificate has not been read yet")
        return self._context

    async def renew(self) -> None:
        """Look at the files now; what is wrong with them is logged."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._look)

    # -- on the thread ------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        # First the stamp: what changes while it is read is read again.
        self._stamp = self._stamp_now()
        self._context = self._tls.context()

    def _look(self) -> None:
        if self._stamp_now() == self._stamp:
            return
        try:
            self._read()
        except ConfigurationError as error:
            # Half of a renewal, too, looks like this: the certificate is there, and its key is not yet.
            logger.error("the new certificate is not usable, and the old one stays", extra={"mistake": str(error)})
        else:
            logger.info("the certificate has changed: new connections get it", extra={"file": str(self._tls.certificate)})

    def _stamp_now(self) -> Stamp:
        return tuple(_stamp(path) for path in (self._tls.certificate, self._tls.key, self._tls.client_ca))

    def __repr__(self) -> str:
        return f"<CurrentCertificate {self._tls.certificate}>"


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        status = path.stat() if path is not None else None
    except OSError:
        # Gone, for as long as it is being replaced; reading it says so.
        return None
    return status and (status.st_mtime_ns, status.st_size, status.st_ino)


_HINTS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate: give it one that an authority of scp.tls.client_ca signed",
    "UNSUPPORTED_PROTOCOL": "it speaks no TLS of 1.2 or above: update it, or give it a port without TLS",
    "VERSION_TOO_LOW": "it speaks no TLS of 1.2 or above: update it, or give it a port without TLS",
    "NO_SHARED_CIPHER": "it offers no cipher suite of ECDHE with AES-GCM or ChaCha20-Poly1305 (BCP 195): turn one on there",
    "NO_SHARED_SIGNATURE_ALGORITHMS": "it takes no key of the kind of our certificate's: an RSA key is what all can take",
    "WRONG_VERSION_NUMBER": "it does not speak TLS: turn it on there, or send it to a port without",
    "HTTP_REQUEST": "it speaks HTTP",
}


def explain(error: OSError) -> str:
    """Why a handshake failed, and what to do about it. Nothing that the peer has written is in it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted, {error.verify_message}: renew it, or look at scp.tls.client_ca"
    reason = getattr(error, "reason", None) or ""
    if "ALERT" in reason:
        return f"it does not go on ({reason.lower()}): does it trust the authority of our certificate, and has that expired?"
    if isinstance(error, TimeoutError):
        return "there was no whole handshake in time: does it speak TLS?"
    return _HINTS.get(reason) or f"the connection ended in the handshake ({reason.lower() or type(error).__name__})"
