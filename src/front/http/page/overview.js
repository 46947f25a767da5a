// The overview: the cluster, the current load, members, feeds, and connections that are behind.

import { Chart } from "./chart.js";
import { ConnectionRows } from "./connections.js";
import { Pager, Rows, byId, bytes, cells, count, counted, dress, el, nextAfter, percent, rate, say, show, time } from "./dom.js";

/** Feeds per page. */
const FEEDS = 50;
/** Largest number of connections in the list of those behind. */
const BEHIND = 8;
/** Number of samples that are kept: three minutes, one per second. */
const SAMPLES = 200;
/** A longer lag is a fault; a shorter one is the normal travel time of an event. */
const LATE = 3;

const HEALTH = { healthy: "good", unknown: "quiet", suspect: "warn", away: "bad" };
const STATE = { live: "good", starting: "warn", resuming: "warn", resyncing: "bad", closed: "quiet" };
const AGREEMENT = { silent: "no member says what the cluster agrees on", leaderless: "the cluster has no leader", leader_lost: "the cluster has lost its leader" };

export class Overview {
  /** `follow()` is called when another part of the state is needed. */
  constructor(follow) {
    this.samples = [];
    this.feeds = new Rows(byId("feeds"), (feed) => feed.number, () => new FeedRow());
    this.members = new Rows(byId("members"), (member) => member.endpoint, () => new MemberRow());
    this.behind = new ConnectionRows(byId("behind"));
    this.pager = new Pager(byId("feeds-pager"), "feeds", follow);
    this.pager.draw();
    this.charts = [
      [new Chart("Events delivered", "/s", rate, 10), (now, before, seconds) => (now.delivered.events - before.delivered.events) / seconds],
      [new Chart("Delivered", "/s", bytes, 1024), (now, before, seconds) => (now.delivered.bytes - before.delivered.bytes) / seconds],
      [new Chart("Cluster revisions", "/s", rate, 10), (now, before, seconds) => Math.max(0, now.revision - before.revision) / seconds],
      [new Chart("CPU of one core", "", percent, 0.05), (now, before, seconds) => (now.cpu - before.cpu) / seconds],
    ];
    this.points = this.charts.map(() => []);
    byId("charts").append(...this.charts.map(([chart]) => chart.node));
    this.tiles = Object.fromEntries(
      [["Cluster", "cluster"], ["Revision", "revision"], ["Lag behind etcd", "lag"], ["Connections", "connections"], ["Watches", "watches"], ["Memory", "memory"]].map(([name, key]) => {
        const value = el("dd", "tile-value num", "–");
        const more = el("dd", "tile-more quiet num", "");
        const node = el("div", "tile", el("dt", "", name), value, more);
        byId("tiles").append(node);
        return [key, { node, value, more }];
      }),
    );
  }

  path() {
    return `/debug/state?watch=1s&feeds=${FEEDS}&feeds_after=${this.pager.after}&connections=${BEHIND}&behind=true`;
  }

  /** Records a sample of each state, even if another part is visible. Rates come from two samples. */
  note(state) {
    const { relay, cluster } = state;
    const now = { at: relay.at, cpu: relay.cpu_seconds, delivered: relay.delivered, revision: cluster.revision };
    const before = this.last;
    this.last = now;
    const seconds = before ? now.at - before.at : 0;
    // The relay restarted, or the page was hidden: nothing is known about the time in between.
    if (before && (seconds <= 0 || seconds > 12)) this.gap();
    const figures = before && seconds > 0 && seconds <= 12;
    if (before && seconds > 0 && seconds < 0.2) return;
    this.points.forEach((points, index) => {
      points.push([now.at, figures ? this.charts[index][1](now, before, seconds) : null]);
      if (points.length > SAMPLES) points.shift();
    });
  }

  gap() {
    for (const points of this.points) {
      // After a restart the clock starts at zero.
      if (points.length && points.at(-1)[0] > this.last.at) points.length = 0;
    }
  }

  draw(state) {
    const { relay, cluster } = state;
    this.charts.forEach(([chart], index) => chart.draw(this.points[index]));
    this.tile("cluster", cluster.id ?? "not known yet", cluster.member ? `at ${cluster.member}` : upstreamName(relay), cluster.agreement === "reached" ? "" : "bad", AGREEMENT[cluster.agreement]);
    this.tile("revision", count(cluster.revision), counted(cluster.keys, "key", "keys"));
    const late = cluster.lag_seconds >= LATE;
    const behind = cluster.lag_revisions > 0;
    this.tile("lag", behind ? time(cluster.lag_seconds) : "none", behind ? counted(cluster.lag_revisions, "revision", "revisions") : "every feed is up to date", late ? "bad" : "");
    this.tile("connections", count(state.connections_open), state.connections.length ? "some are behind, see below" : "none is behind", "");
    this.tile("watches", count(cluster.watches), counted(state.feeds_open, "feed", "feeds"));
    this.tile("memory", bytes(relay.memory_bytes), counted(relay.cores, "core", "cores"));

    show(byId("members-box"), (state.members?.length ?? 0) > 0);
    this.members.show(state.members ?? []);

    this.feeds.show(state.feeds);
    this.pager.follows(nextAfter(state.feeds_next));
    say(byId("feeds-count"), state.feeds.length < state.feeds_open ? `${count(state.feeds.length)} of ${count(state.feeds_open)}` : count(state.feeds_open));
    show(byId("feeds-empty"), state.feeds_open === 0);

    this.behind.show(state.connections);
    show(byId("behind-table"), state.connections.length > 0);
    show(byId("behind-empty"), state.connections.length === 0);
    say(byId("behind-count"), state.connections.length === 0 ? "" : state.connections_next ? `the first ${count(state.connections.length)}` : count(state.connections.length));
  }

  tile(key, value, more, className = "", instead) {
    const tile = this.tiles[key];
    dress(tile.node, `tile ${className}`.trim());
    say(tile.value, value);
    say(tile.more, instead ?? more);
  }
}

function upstreamName(relay) {
  return relay.upstream ? `etcd ${relay.upstream.etcdserver}` : "etcd's version is not known yet";
}

class MemberRow {
  constructor() {
    [this.node, this.cells] = cells([["Endpoint", "mono long"], ["Health", ""], ["Calls go here", ""], ["For", "right num"], ["Why", "wrap long"]]);
  }

  update(member) {
    const [endpoint, health, used, since, why] = this.cells;
    say(endpoint, member.endpoint);
    say(health, member.health);
    dress(health, `dot ${HEALTH[member.health] ?? ""}`);
    say(used, member.preferred ? "yes" : "");
    say(since, time(member.for_seconds));
    say(why, [member.why, member.shunned_by_feeds ? "feeds keep away from it" : ""].filter(Boolean).join("; "));
  }
}

class FeedRow {
  constructor() {
    [this.node, this.cells] = cells([["Keys from", "mono wrap wide"], ["State", ""], ["Revision", "right num"], ["Lag", "right num"], ["Keys", "right num"], ["Size", "right num"], ["History", "right num"], ["Watches", "right num"], ["Member", "mono long"], ["Last error", "long"]]);
    const history = this.cells[6];
    this.from = el("span", "", "");
    this.kept = el("span", "second quiet", "");
    history.append(this.from, this.kept);
    this.lag = el("span", "", "");
    this.late = el("span", "second", "");
    this.cells[3].append(this.lag, this.late);
    this.when = el("summary", "", "");
    this.error = el("p", "mono", "");
    this.trouble = el("details", "", this.when, this.error);
    this.none = el("span", "quiet", "none");
    this.cells[9].append(this.trouble, this.none);
  }

  update(feed) {
    const [range, state, revision, lag, keys, size, , watches, member] = this.cells;
    say(range, feed.range);
    const trouble = feed.permission === "denied" ? "denied" : feed.permission === "lost" ? "permission lost" : feed.doubted ? "in doubt" : "";
    say(state, trouble ? `${feed.state}, ${trouble}` : feed.state);
    dress(state, `dot ${trouble ? "bad" : (STATE[feed.state] ?? "")}`);
    say(revision, count(feed.revision));
    say(this.lag, count(feed.lag_revisions));
    say(this.late, feed.lag_revisions > 0 ? `for ${time(feed.lag_seconds)}` : "");
    dress(lag, `right num ${feed.lag_seconds >= LATE ? "bad" : feed.lag_revisions > 0 ? "" : "quiet"}`.trim());
    say(keys, count(feed.keys));
    say(size, bytes(feed.bytes));
    say(this.from, `from ${count(feed.history_start)}`);
    say(this.kept, `${counted(feed.history_entries, "revision", "revisions")}, ${bytes(feed.history_bytes)}`);
    say(watches, count(feed.watches));
    say(member, feed.member ?? "–");
    const { last_error: last } = feed;
    show(this.trouble, last !== null);
    show(this.none, last === null);
    if (last === null) return;
    say(this.when, `${last.at.replace("T", " ")}, ${last.over ? "over" : "ongoing"}`);
    dress(this.trouble, last.over ? "quiet" : "bad");
    say(this.error, last.error);
    // A current error is opened at once, but not again after the user closed it.
    if (!last.over && this.seen !== last.error) this.trouble.open = true;
    if (last.over && this.seen) this.trouble.open = false;
    this.seen = last.over ? null : last.error;
  }
}
