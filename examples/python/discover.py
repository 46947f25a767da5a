"""Shows who is registered for a service, and keeps showing what changes:

    python3 discover.py web

See ../README.md for the rules that this follows, and follow.py for the code that does.
"""

import sys

from etcd import Etcd, run, say, usage
from follow import follow


class Members:
    """The service as it is known now. A real program would choose from it which member to call."""

    def __init__(self, prefix):
        self.prefix = prefix
        self.addresses = {}

    def listed(self, revision, count, changes):
        say(f"listed at revision {revision}: {count} members")
        self.changed(changes)

    def changed(self, changes):
        for change in changes:
            name = in_text(change.key.removeprefix(self.prefix))
            if change.new is None:
                if self.addresses.pop(name, None) is not None:
                    say(f"- {name} (revision {change.revision})")
                continue
            self.addresses[name] = change.new
            if change.old is None:
                say(f"+ {name} {in_text(change.new)} (revision {change.revision})")
            elif change.old != change.new:
                say(f"~ {name} {in_text(change.new)}, was {in_text(change.old)} (revision {change.revision})")

    def cut_off(self, reason):
        say(f"cut off, keeping {len(self.addresses)} members: {reason}")

    def resumed(self, revision):
        say(f"up to date again at revision {revision}: {len(self.addresses)} members")


def in_text(value):
    return value.decode(errors="replace")


async def main():
    if len(sys.argv) != 2:
        usage("discover.py SERVICE (environment: ETCD_ENDPOINTS)")
    prefix = f"/services/{sys.argv[1]}/".encode()
    await follow(Etcd(), Members(prefix), prefix, prefix=True)


run(main)
