"""Registers one instance of a service in etcd while this program runs:

    python3 register.py web http://10.0.0.1:8080

The key /services/web/INSTANCE has a lease, so it is deleted within TTL seconds after this program dies, and at once when it is stopped. See ../README.md for the rules that this follows.
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
        # An attempt, and the longest pause before the next one, take a fifth of the TTL each. The next renewal is due after a third. So there is time for a
        # server that does not answer, and then for another one, before the lease ends.
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
                    say("the lease is gone: registering again")
                    self.lease = 0
                except Failed as error:
                    # It is not known now whether the lease still lives. etcd will say so when it answers again.
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
        """Makes sure that the lease lives and that the key is there, with this lease. Each step may be repeated, so a failure halfway does no harm."""
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
        call = self.etcd.lease.LeaseKeepAlive()
        try:
            await call.write(pb.LeaseKeepAliveRequest(ID=self.lease))
            answer = await call.read()
            if answer is grpc.aio.EOF:
                raise ConnectionError("the stream of keep-alives ended")
            if answer.TTL <= 0:
                raise LeaseGone
        finally:
            call.cancel()

    async def leave(self):
        """Deletes the key at once, by revoking its lease. If etcd does not answer, the lease ends by itself."""
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
