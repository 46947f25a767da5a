"""What all three programs need: the connection to etcd, pauses between attempts, and a stop signal.

One connection to one endpoint at a time. When a call fails or gets no answer, the caller moves on to the next endpoint.
"""

import asyncio
import os
import random
import signal
import sys

import grpc

import etcd_pb2_grpc as rpc

# A server that is frozen, or behind a broken network, does not close connections: only pings notice it. etcd ends connections
# that send more than one ping in five seconds.
OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # No limit on the size of answers, since etcd has its own.
    ("grpc.max_receive_message_length", -1),
]

# Raised by a call that failed, and by one that got no answer in time.
Failed = (grpc.aio.AioRpcError, asyncio.TimeoutError, ConnectionError)


class Etcd:
    """A connection to one of ETCD_ENDPOINTS: relays, members of etcd, or both."""

    def __init__(self):
        endpoints = os.environ.get("ETCD_ENDPOINTS") or "http://127.0.0.1:23790"
        self._targets = [endpoint.removeprefix("http://") for endpoint in endpoints.split(",")]
        # Clients start at different endpoints, so that no endpoint gets all of them.
        random.shuffle(self._targets)
        self._connect()

    def _connect(self):
        self._channel = grpc.aio.insecure_channel(self._targets[0], OPTIONS)
        self.kv = rpc.KVStub(self._channel)
        self.watch = rpc.WatchStub(self._channel)
        self.lease = rpc.LeaseStub(self._channel)

    async def move_on(self):
        """Moves on to the next endpoint."""
        await self._channel.close()
        self._targets.append(self._targets.pop(0))
        self._connect()

    async def close(self):
        await self._channel.close()


class Backoff:
    """The pause before the next attempt: it doubles with each failure, and differs from client to client, so that a
    thousand clients that lost the same server do not come back in the same instant."""

    def __init__(self, longest):
        self._longest = longest
        self._next = 0.0

    def pause(self):
        self._next = min(max(2 * self._next, 0.1), self._longest)
        return random.uniform(self._next / 2, self._next)

    def reset(self):
        self._next = 0.0


def in_words(error):
    """A failed call for people."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.details() or error.code().name
    return str(error) or "no answer in time"


def say(text):
    print(text, flush=True)


def run(main):
    """Runs a program until it ends, or SIGTERM or Ctrl-C cancels it."""

    async def until_stopped():
        task = asyncio.current_task()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, task.cancel)
        try:
            await main()
        except asyncio.CancelledError:
            pass

    asyncio.run(until_stopped())


def usage(text):
    sys.exit(f"usage: {text}")
