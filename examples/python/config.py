"""Follows a service's configuration in etcd, and reloads it when it changes:

    python3 config.py web
    etcdctl put /config/web '{"greeting": "hello", "workers": 4}'

An invalid value is rejected, and the last valid one stays in use. See ../README.md for the rules that this follows.
"""

import json
import sys
from dataclasses import asdict, dataclass, fields

from etcd import Etcd, run, say, usage
from follow import follow


@dataclass(frozen=True)
class Config:
    """What the service can be told."""

    greeting: str
    workers: int


def parse(value):
    """Rejects what it does not understand, and names it."""
    settings = json.loads(value)
    if not isinstance(settings, dict):
        raise ValueError("it must be a JSON object")
    names = {field.name for field in fields(Config)}
    # A misspelt name is an error, not a setting that has no effect.
    for name in settings.keys() - names:
        raise ValueError(f"unknown setting {name!r}")
    for name in names - settings.keys():
        raise ValueError(f"{name} is missing")
    config = Config(**settings)
    if not isinstance(config.greeting, str) or not config.greeting:
        raise ValueError(f"greeting must be a text that is not empty, not {config.greeting!r}")
    if type(config.workers) is not int or not 1 <= config.workers <= 64:
        raise ValueError(f"workers must be from 1 to 64, not {config.workers!r}")
    return config


class Reloader:
    """Keeps the configuration in use. It is replaced as a whole, so nobody sees a mixture of the old and the new."""

    def __init__(self):
        self.config = None
        self.revision = None

    def listed(self, revision, count, changes):
        if count == 0 and not changes:
            say(f"there is no configuration at revision {revision}")
        self.changed(changes)

    def changed(self, changes):
        for change in changes:
            if change.new is None:
                say(f"deleted in revision {change.revision}, {self.in_use()}")
                continue
            try:
                config = parse(change.new)
            except (ValueError, RecursionError) as error:
                say(f"refused revision {change.revision}, {self.in_use()}: {error}")
                continue
            say(f"configuration of revision {change.revision}: {difference(self.config, config)}")
            self.config, self.revision = config, change.revision

    def cut_off(self, reason):
        say(f"cut off, {self.in_use()}: {reason}")

    def resumed(self, revision):
        say(f"up to date again at revision {revision}")

    def in_use(self):
        return "nothing in use yet" if self.config is None else f"revision {self.revision} stays in use"


def difference(before, after):
    """What changed, or all of a first configuration."""
    if before is None:
        return ", ".join(f"{name} {json.dumps(value)}" for name, value in asdict(after).items())
    old, new = asdict(before), asdict(after)
    changed = [f"{name} {json.dumps(old[name])} -> {json.dumps(new[name])}" for name in new if old[name] != new[name]]
    return ", ".join(changed) or "nothing changed"


async def main():
    if len(sys.argv) != 2:
        usage("config.py SERVICE (environment: ETCD_ENDPOINTS)")
    key = f"/config/{sys.argv[1]}"
    say(f"following {key}")
    await follow(Etcd(), Reloader(), key.encode())


run(main)
