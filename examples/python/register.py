"""Registers one instance of a service in etcd for as long as this program lives:

    python3 register.py web http://10.0.0.1:8080

The key /services/web/INSTANCE is under a lease, so it goes within TTL seconds of this program's death, and at once when it is
told to stop. See ../README.md for the rules that this follows.
"""

import asyncio
import os
import socket
import sys
import time

import grpc

import etcd_pb2 as pb
from etcd import Backoff, Etcd, Failed, in_words, run, say, usage


class LeaseGone(Exception):
    """etcd does not know the lease: it has expired, was revoked, or is not in the backup that etcd was restored from."""


class Registration:
    """A key that is there while its process is."""

    def __init__(self, etcd, name, value, ttl):
        self.etcd = etcd
        self.name = name
        self.value = value
        self.ttl = ttl
        self.lease = 0
        # One attempt, and the longest pause before the next one, take a fifth of the TTL each. The next renewal is due after a
        # third. So there is time for a server that does not answer, and for the next one, before the lease ends.
        self.deadline = ttl / 5

    async def keep(self):
        """Registers, and keeps the registration until this task is cancelled; then takes it away."""
        backoff = Backoff(self.ttl / 5)
        failed_since = None
        try:
            while True:
                try:
                    await asyncio.wait_for(self.renew(), self.deadline)
                except LeaseGone:
                    say("the lease is gone: registering anew")
                    self.lease = 0
                except Failed as error:
                    # Whether the lease still lives is not known now. etcd says so when it answers again.
                    if failed_since is None:
                        failed_since = time.monotonic()
                        say(f"no answer from etcd, trying again: {in_words(error)}")
                    await self.etcd.move_on()
                    await asyncio.sleep(backoff.pause())
                else:
                    if failed_since is not None:
                        say(f"etcd answers again, after {time.monotonic() - failed_since:.1f} s")
                        failed_since = None
                    backoff.reset()
                    await asyncio.sleep(self.ttl / 3)
        finally:
            await self.leave()

    async def renew(self):
        """Makes true what a registration promises: the lease lives, and the key is there, under this lease. Each step may be
        repeated, so a failure half-way does no harm."""
        if self.lease == 0:
            granted = await self.etcd.lease.LeaseGrant(pb.LeaseGrantRequest(TTL=self.ttl))
            self.lease = granted.ID
        else:
            await self.keep_alive()
        # The key may be gone although the lease lives: deleted by hand, or missing in a cluster that was restored from a backup.
        key, value = f"/services/{self.name}".encode(), self.value.encode()
        found = await self.etcd.kv.Range(pb.RangeRequest(key=key))
        if any(kv.lease == self.lease and kv.value == value for kv in found.kvs):
            return
        try:
            put = await self.etcd.kv.Put(pb.PutRequest(key=key, value=value, lease=self.lease))
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise LeaseGone from error
            raise
        say(f"registered {self.name} at revision {put.header.revision}, with lease {self.lease:x} and a TTL of {self.ttl} s")

    async def keep_alive(self):
        async def requests():
            yield pb.LeaseKeepAliveRequest(ID=self.lease)
            await asyncio.Event().wait()

        call = self.etcd.lease.LeaseKeepAlive(requests())
        try:
            async for answer in call:
                if answer.TTL <= 0:
                    raise LeaseGone
                return
            raise ConnectionError("the stream of keep-alives ended")
        finally:
            call.cancel()

    async def leave(self):
        """Takes the key away at once, by ending its lease. If etcd does not answer, the lease ends by itself."""
        if self.lease:
            try:
                await self.etcd.lease.LeaseRevoke(pb.LeaseRevokeRequest(ID=self.lease), timeout=self.deadline)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    say(f"left {self.name} without an answer from etcd: it goes within {self.ttl} s ({in_words(error)})")
                    return
        say(f"left {self.name}")


async def main():
    if len(sys.argv) != 3:
        usage("register.py SERVICE ADDRESS (environment: ETCD_ENDPOINTS, TTL in seconds, INSTANCE)")
    instance = os.environ.get("INSTANCE") or f"{socket.gethostname()}-{os.getpid()}"
    ttl = os.environ.get("TTL") or "10"
    if not ttl.isdigit() or int(ttl) < 2:
        sys.exit("TTL must be a number of seconds, 2 or more")
    await Registration(Etcd(), f"{sys.argv[1]}/{instance}", sys.argv[2], int(ttl)).keep()


run(main)
