// The list of connections: their clients, what they watch, and how far they are behind.
//
// Always holds: only one page of rows is shown, however many connections are open.

import { Pager, Rows, byId, bytes, cells, count, counted, dress, el, nextAfter, say, show, time } from "./dom.js";

/** Connections per page. */
const PAGE = 50;
/** Keys and ranges that are shown per connection. */
const SHOWN = 4;

export class Connections {
  /** `follow()` is called when another part of the state is needed. */
  constructor(follow) {
    this.rows = new ConnectionRows(byId("connections"));
    this.pager = new Pager(byId("connections-pager"), "connections", follow);
    this.pager.draw();
    this.find = byId("find");
    this.onlyBehind = byId("only-behind");
    const again = () => {
      this.pager.reset();
      follow();
    };
    let timer;
    this.find.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(again, 250);
    });
    this.onlyBehind.addEventListener("change", again);
    byId("search").addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(timer);
      again();
    });
  }

  path() {
    const find = this.find.value.trim();
    // A search reads many connections, so it runs less often.
    const asked = new URLSearchParams({ watch: find ? "4s" : "2s", feeds: "0", connections: String(PAGE), connections_after: String(this.pager.after) });
    if (find) asked.set("find", find);
    if (this.onlyBehind.checked) asked.set("behind", "true");
    return `/debug/state?${asked}`;
  }

  draw(state) {
    const { connections } = state;
    this.rows.show(connections);
    this.pager.follows(nextAfter(state.connections_next));
    say(byId("connections-count"), `${count(connections.length)} of ${count(state.connections_open)}`);
    const empty = byId("connections-empty");
    show(empty, connections.length === 0);
    if (connections.length > 0) return;
    const where = state.connections_next ? " among those searched so far; Next searches on" : "";
    if (this.onlyBehind.checked) say(empty, `No connection is behind${where}.`);
    else if (this.find.value.trim()) say(empty, `No connection has this text in its address, user, agent, request or keys${where}.`);
    else say(empty, "No connection on this page.");
  }
}

/** A table of connections. */
export class ConnectionRows extends Rows {
  constructor(body) {
    super(body, (connection) => connection.id, () => new ConnectionRow());
  }
}

class ConnectionRow {
  constructor() {
    [this.node, this.cells] = cells([["Client", "wide"], ["Port", ""], ["Open for", "right num"], ["Watches", "wide"], ["Behind by", "right num"], ["Unread", "right num"]]);
    this.peer = el("span", "mono", "");
    this.user = el("span", "user", "");
    this.agent = el("span", "second quiet clip", "");
    this.cells[0].append(this.peer, this.user, this.agent);
    this.ranges = Array.from({ length: SHOWN }, () => el("span", "range mono", ""));
    this.more = el("a", "second", "");
    this.cells[3].append(...this.ranges, this.more);
    this.lag = el("span", "", "");
    this.phase = el("span", "second quiet", "");
    this.cells[4].append(this.lag, this.phase);
    this.unread = el("span", "", "");
    this.queued = el("span", "second quiet", "");
    this.cells[5].append(this.unread, this.queued);
  }

  update(connection) {
    const [, port, open, , behind, unread] = this.cells;
    const streams = connection.watch_streams;
    say(this.peer, connection.peer);
    say(this.user, connection.user ?? "");
    show(this.user, connection.user !== null);
    say(this.agent, connection.agent ?? "");
    show(this.agent, connection.agent !== null);
    say(port, connection.protocol === "http1" ? `${connection.port}, HTTP/1` : connection.port);
    say(open, time(connection.open_seconds));
    this.showRanges(connection, streams);
    const sum = (field) => streams.reduce((all, stream) => all + stream[field], 0);
    const [parked, filling, queued, queuedBytes] = ["parked", "filling", "queued", "queued_bytes"].map(sum);
    say(this.lag, connection.lag_revisions > 0 ? counted(connection.lag_revisions, "revision", "revisions") : parked + filling > 0 ? "catching up" : streams.length ? "0" : "–");
    dress(behind, `right num ${connection.lag_revisions > 0 ? "warn" : "quiet"}`);
    say(this.phase, [parked && `${count(parked)} parked`, filling && `${count(filling)} before the history`].filter(Boolean).join(", "));
    say(this.unread, queued > 0 ? bytes(queuedBytes) : streams.length ? "0" : "–");
    say(this.queued, queued > 0 ? counted(queued, "delivery", "deliveries") : "");
    dress(unread, `right num ${queued > 0 ? "" : "quiet"}`.trim());
  }

  showRanges(connection, streams) {
    const watching = streams.flatMap((stream) => stream.watching);
    const texts = [];
    if (connection.request) texts.push(connection.request);
    for (const watch of watching) texts.push(watch.range ?? `watch ${watch.watch_id} has ended`);
    this.ranges.forEach((node, index) => {
      say(node, texts[index] ?? "");
      show(node, index < texts.length);
    });
    const all = connection.watches;
    const hidden = all === null || all > watching.length || texts.length > SHOWN;
    show(this.more, hidden);
    if (!hidden) return;
    const rest = all === null ? `${counted(connection.watch_streams_open, "stream", "streams")} in all` : `${counted(all, "watch", "watches")} in all`;
    say(this.more, rest);
    const path = `/debug/state/connections/${connection.id}/streams`;
    if (this.more.getAttribute("href") !== path) this.more.setAttribute("href", path);
  }
}
