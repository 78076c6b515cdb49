"""A target that is an HTTP server: every event is a POST of JSON, signed in the manner of Standard Webhooks.

The only module that knows httpx, which comes with the extra ``events``.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import anyio
import httpx

from asyncdicom._version import __version__
from asyncdicom.errors import DeliveryFailed
from asyncdicom.events.contract import Message
from asyncdicom.events.signing import signature

# What a receiver answers is read, so that its connection can be used again, up to so many bytes.
_ANSWER_READ = 16_384
_GONE = 410


class Webhook:
    """Posts each event to an address; a status of 2xx means that it was taken, 410 that nobody ever will.

    Redirects are not followed, and the environment's proxies are not used.

    :param url: ``http://`` or ``https://``
    :raises ValueError: when it is none
    :param key: signs what is sent; None for no signature
    :param timeout: seconds for one attempt, from the resolver to the answer
    :param concurrency: events at once
    :param verify: whom to trust with ``https://``; None for the authorities of the system
    :ivar key: may be replaced at any time
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        on: Collection[str],
        key: bytes | None = None,
        timeout: float = 30.0,
        concurrency: int = 4,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self.name = name
        self.on = frozenset(on)
        self.concurrency = concurrency
        self.key = key
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(str(error)) from error
        self._host = self._url.raw_host.decode("ascii")
        self._timeout = timeout
        self._verify = verify
        self._client: httpx.AsyncClient | None = None
        # The resolver cannot be interrupted, and neither is reading certificates for the loop.
        self._threads: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        self._threads = ThreadPoolExecutor(2, thread_name_prefix=f"event-{self.name}")
        try:
            verify = self._verify
            if verify is None:
                verify = await asyncio.get_running_loop().run_in_executor(self._threads, ssl.create_default_context)
            self._client = httpx.AsyncClient(
                verify=verify,
                trust_env=False,
                follow_redirects=False,
                timeout=self._timeout,
                headers={"user-agent": f"asyncdicom/{__version__}"},
                limits=httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
            )
        except BaseException:
            self._threads.shutdown(wait=False)
            raise
        return self

    async def __aexit__(self, *exception: Any) -> None:
        client, self._client = self._client, None
        if client is not None:
            with anyio.CancelScope(shield=True):
                await client.aclose()
        if self._threads is not None:
            # A resolver that hangs keeps its thread; nobody waits for it.
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    async def deliver(self, message: Message) -> None:
        """Post it.

        :raises DeliveryFailed: when it is not answered in time, or with another status than 2xx
        """
        body = message.encoded()
        try:
            with anyio.fail_after(self._timeout):
                status = await self._post(message.id, body)
        except TimeoutError:
            raise DeliveryFailed(f"no answer in {self._timeout:g} s") from None
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise DeliveryFailed(f"{self._host} is not resolved: {why}") from error
        except httpx.ConnectError as error:
            raise DeliveryFailed(f"no connection: {_reason(error)}") from error
        except httpx.HTTPError as error:
            # The text of some of them shows the whole address, which may be a secret.
            raise DeliveryFailed(f"the request failed: {type(error).__name__}") from error
        if status == _GONE:
            raise DeliveryFailed("answered with status 410: the receiver wants it no more", final=True)
        if not 200 <= status <= 299:
            hint = "; redirects are not followed" if 300 <= status <= 399 else ""
            raise DeliveryFailed(f"answered with status {status}{hint}")

    async def _post(self, message_id: str, body: bytes) -> int:
        """Send it to the first address that takes a connection, and return the status of the answer."""
        failure: httpx.ConnectError | None = None
        for address in await self._addresses():
            try:
                return await self._post_to(address, message_id, body)
            except httpx.ConnectError as error:
                failure = error
        raise failure or OSError("no address")

    async def _post_to(self, address: str, message_id: str, body: bytes) -> int:
        if self._client is None:
            raise RuntimeError("this works inside of its `async with` block only")
        timestamp = int(time.time())
        headers = {
            # The address is ours, the name is the receiver's.
            "host": self._url.netloc.decode("ascii"),
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
        }
        if self.key is not None:
            headers["webhook-signature"] = signature(self.key, message_id, timestamp, body)
        url = self._url.copy_with(host=address)
        extensions = {"sni_hostname": self._host}
        async with self._client.stream("POST", url, content=body, headers=headers, extensions=extensions) as answer:
            read = 0
            async for part in answer.aiter_raw():
                read += len(part)
                if read > _ANSWER_READ:
                    break
            return answer.status_code

    async def _addresses(self) -> list[str]:
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        resolve = functools.partial(socket.getaddrinfo, self._host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, resolve)
        return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))

    def __repr__(self) -> str:
        return f"<Webhook {self.name}: {self._url.scheme}://{self._url.netloc.decode('ascii')}>"


def _reason(error: BaseException) -> str:
    """What the system said, below what libraries made of it."""
    said = str(error)
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, ssl.SSLError):
            said = below.strerror or said
        elif isinstance(below, OSError) and below.errno:
            said = os.strerror(below.errno)
        below = below.__cause__ or below.__context__
    return said
