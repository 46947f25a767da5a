"""Keeps a copy of a few keys of etcd: lists them once, and then watches what changes.

The copy is always a state that etcd had at its revision. It only moves forward, by every change, in order. If the changes
are no longer available (because etcd has compacted them, or was restored from a backup), the keys are listed again and
compared with the copy, so no change is missed.
"""

import asyncio
from dataclasses import dataclass

import grpc

import etcd_pb2 as pb
from etcd import Backoff, Failed, in_words

# A list, or the answer to the creation of a watch, that takes longer has failed.
DEADLINE = 5.0


@dataclass(frozen=True)
class Change:
    """What happened to one key. `old` is None where the key is new, `new` where it is gone."""

    key: bytes
    old: bytes | None
    new: bytes | None
    # If a list showed that the key is gone, this is the revision of the list.
    revision: int


async def follow(etcd, handler, key, prefix=False):
    """Follows a key, or all keys with this prefix, forever. The handler receives what happens, one call after the other:

    listed(revision, count, changes)  after each list: at the start, and when changes were lost, with the changes since the previous copy
    changed(changes)                  with each response of the watch
    cut_off(reason)                   changes may be late from now on; the copy stays as it is
    resumed(revision)                 the interruption is over, and nothing was missed
    """
    follower = Follower(etcd, handler, key, prefix)
    backoff = Backoff(3.0)
    while True:
        try:
            await follower.list_and_watch(backoff)
        except Failed as error:
            follower.is_cut_off(in_words(error))
            await etcd.move_on()
            await asyncio.sleep(backoff.pause())


class Follower:
    def __init__(self, etcd, handler, key, prefix):
        self.etcd = etcd
        self.handler = handler
        self.key = key
        self.range_end = end_of_prefix(self.key) if prefix else b""
        self.copy = {}
        # The copy has every change up to this revision, of this cluster.
        self.revision = 0
        self.cluster_id = 0
        # Whether a watch can go on from there. If not, the keys are listed again.
        self.is_listed = False
        self.is_away = False

    async def list_and_watch(self, backoff):
        """Raises when the connection fails or the watch ends."""
        if not self.is_listed:
            await self.list()
        # The member must know a leader: one that is cut off from the others would stay silent.
        call = self.etcd.watch.Watch(metadata=[("hasleader", "true")])
        try:
            # The stream of requests stays open as long as the watch does.
            await asyncio.wait_for(call.write(self.create()), DEADLINE)
            created = await asyncio.wait_for(call.read(), DEADLINE)
            self.check(created)
            # A cluster that was restored from a backup is another one, or has gone back to a lower revision: a watch
            # from a revision that does not exist yet would wait silently.
            if created.header.revision < self.revision:
                self.is_listed = False
                raise ConnectionError(f"etcd is at revision {created.header.revision}, and was at {self.revision}: it was restored")
            if self.is_away:
                self.is_away = False
                self.handler.resumed(self.revision)
            backoff.reset()
            while True:
                response = await call.read()
                self.check(response)
                self.apply(response)
        finally:
            call.cancel()

    def create(self):
        """The request for a watch from the next revision on."""
        create = pb.WatchCreateRequest(
            key=self.key, range_end=self.range_end, start_revision=self.revision + 1, progress_notify=True
        )
        return pb.WatchRequest(create_request=create)

    async def list(self):
        """Reads the keys, and compares them with the copy."""
        request = pb.RangeRequest(key=self.key, range_end=self.range_end)
        response = await self.etcd.kv.Range(request, timeout=DEADLINE)
        listed = {kv.key: (kv.value, kv.mod_revision) for kv in response.kvs}
        revision = response.header.revision
        changes = [Change(key, old, None, revision) for key, old in self.copy.items() if key not in listed]
        for key, (value, changed_in) in listed.items():
            if self.copy.get(key) != value:
                changes.append(Change(key, self.copy.get(key), value, changed_in))
        self.copy = {key: value for key, (value, _) in listed.items()}
        self.revision, self.cluster_id = revision, response.header.cluster_id
        self.is_listed, self.is_away = True, False
        self.handler.listed(revision, len(self.copy), changes)

    def check(self, response):
        """Raises if the watch has ended, or belongs to another cluster than the copy."""
        if response is grpc.aio.EOF:
            raise ConnectionError("the watch ended")
        if response.canceled:
            # A list is correct, whatever the reason was.
            self.is_listed = False
            if response.compact_revision:
                raise ConnectionError(f"etcd has compacted everything before revision {response.compact_revision}")
            raise ConnectionError(response.cancel_reason or "the watch was cancelled")
        if response.header.cluster_id != self.cluster_id:
            self.is_listed = False
            raise ConnectionError("another cluster answers: etcd was restored")

    def apply(self, response):
        """Applies a response of the watch. A response without events is progress: nothing else happened up to its revision."""
        changes = []
        for event in response.events:
            key, old = event.kv.key, self.copy.get(event.kv.key)
            if event.type == pb.Event.DELETE:
                self.copy.pop(key, None)
                changes.append(Change(key, old, None, event.kv.mod_revision))
            else:
                self.copy[key] = event.kv.value
                changes.append(Change(key, old, self.copy[key], event.kv.mod_revision))
            self.revision = event.kv.mod_revision
        if changes:
            self.handler.changed(changes)
        else:
            self.revision = max(self.revision, response.header.revision)

    def is_cut_off(self, reason):
        if not self.is_away:
            self.is_away = True
            self.handler.cut_off(reason)


def end_of_prefix(prefix):
    """The first key after all that begin with the prefix, which is not empty and does not end with 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
