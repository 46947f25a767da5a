// Ties the page together: the visible part, the part of the state that it follows, and the status of the relay.

import { Connections } from "./connections.js";
import { byId, count, dress, eachFrame, say, show, time } from "./dom.js";
import { Keys } from "./keys.js";
import { Live } from "./live.js";
import { Overview } from "./overview.js";
import { Views } from "./views.js";

/** The state that parts without rows follow. */
const LITTLE = "/debug/state?watch=2s&feeds=0&connections=0";
const LINK = { live: "good", connecting: "quiet", paused: "quiet", lost: "bad", refused: "bad" };

const overview = new Overview(() => follow());
const connections = new Connections(() => follow());
const keys = new Keys();
const views = new Views();
const parts = { overview, connections, keys, views };
let part = "overview";
let state = null;

const live = new Live(
  (told) => {
    state = told;
    overview.note(told);
    redraw();
  },
  (what, text, pause) => {
    const link = byId("link");
    say(link, what === "lost" ? "disconnected" : what === "refused" ? "not allowed" : text);
    dress(link, `pill ${LINK[what]}`);
    document.body.classList.toggle("stale", what === "lost" || what === "refused");
    notice(what, text, pause);
  },
);

const redraw = eachFrame(() => {
  if (!state) return;
  drawBar(state);
  drawTab(state);
  parts[part].draw?.(state);
});

/** Shows a problem of the relay or of the connection to it. */
function notice(what, text, pause) {
  const node = byId("notice");
  if (what === "refused") {
    say(node, `You may not see this page. ${text}`);
  } else if (what === "lost") {
    say(node, `Disconnected: ${text}. The data is from before. Retrying every ${time(Math.max(pause / 1000, 1))}.`);
  } else {
    const reasons = what === "live" ? (state?.relay.not_ready ?? []) : [];
    say(node, reasons.length ? `Not ready: ${reasons.join(" · ")}` : "");
  }
  dress(node, `notice ${what === "live" ? "warn" : "bad"}`);
  show(node, node.textContent !== "");
}

function drawBar({ relay, cluster }) {
  say(byId("version"), relay.version);
  say(byId("uptime"), `up ${time(relay.uptime_seconds)}`);
  const reasons = relay.not_ready;
  say(byId("ready"), reasons.length ? "not ready" : "ready");
  dress(byId("ready"), `pill ${reasons.length ? "bad" : "good"}`);
  say(byId("summary"), cluster.lag_seconds >= 1 ? `revision ${count(cluster.revision)}, ${count(cluster.lag_revisions)} behind` : `revision ${count(cluster.revision)}`);
  if (byId("link").textContent === "live") notice("live");
}

function drawTab({ connections_open: open }) {
  say(byId("tab-connections"), count(open));
}

function follow() {
  live.follow(parts[part].path?.() ?? LITTLE);
}

/** Shows the part that the address names. */
function route() {
  const named = location.hash.slice(1);
  const [name, ...rest] = named.split("=");
  if (name && !Object.hasOwn(parts, name)) return;
  part = name || "overview";
  for (const [other, shown] of Object.entries(parts)) {
    show(byId(`part-${other}`), other === part);
    if (other !== part) shown.leave?.();
  }
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.part === part) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = part === "overview" ? "etcd-relay" : `${part} · etcd-relay`;
  parts[part].enter?.(rest.length ? decoded(rest.join("=")) : null);
  follow();
  redraw();
}

/** A part of the address; as it is if it is not valid, since anyone can write a link. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

window.addEventListener("hashchange", route);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("content").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") parts[part].escape?.();
  const typing = event.target instanceof HTMLInputElement;
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const field = { connections: "find", keys: "prefix" }[part];
  if (!field) return;
  event.preventDefault();
  byId(field).focus();
});

route();
