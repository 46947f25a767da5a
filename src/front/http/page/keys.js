// A browser of keys: one page of the keys with a prefix, with their values as they change.
//
// The relay decides what may be read, for each request, as for any client of `/v1/`.
// Always holds: only the visible page of keys is followed; a page whose values are too large is shown without
// them; no stream is open while this part or the page is hidden.

import { Pager, Rows, byId, bytes, cells, count, counted, dress, eachFrame, el, say, show } from "./dom.js";

/** Keys per page. */
const PAGE = 100;
/** Longest value in the list and in the panel, in characters. */
const SHOWN = 160;
const SHOWN_WHOLE = 200000;
/** Largest page that is read with values, in bytes; a larger one is read without them. */
const MOST_BYTES = 8 << 20;
const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 10000;
/** Whether the user prefers reduced motion. */
const stillness = matchMedia("(prefers-reduced-motion: reduce)");

export class Keys {
  constructor() {
    this.prefix = null;
    this.kvs = new Map();
    this.entered = false;
    this.rows = new Rows(byId("keys"), keyId, () => new KeyRow((kv) => this.choose(kv)));
    this.pager = new KeyPager(byId("keys-pager"), () => this.load());
    this.redraw = eachFrame(() => this.show());
    byId("keys-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const hash = `#keys=${encodeURIComponent(byId("prefix").value)}`;
      if (location.hash === hash) this.enter(byId("prefix").value, true);
      else location.hash = hash;
    });
    byId("key-close").addEventListener("click", () => this.escape());
    document.addEventListener("visibilitychange", () => this.entered && (document.hidden ? this.stop() : this.load()));
    window.addEventListener("pagehide", () => this.stop());
  }

  enter(prefix, again = false) {
    this.entered = true;
    const wanted = prefix ?? this.prefix ?? "";
    if (wanted !== this.prefix || again) {
      this.prefix = wanted;
      this.pager.reset();
      this.choose(null);
      this.kvs.clear();
    }
    byId("prefix").value = this.prefix;
    this.load();
  }

  leave() {
    this.entered = false;
    this.stop();
  }

  escape() {
    const row = this.chosen && this.rows.get(this.chosen);
    this.choose(null);
    row?.button.focus();
  }

  stop() {
    this.reading?.abort();
    this.reading = null;
    this.source?.close();
    this.source = null;
    clearTimeout(this.timer);
  }

  /** Reads the page, then follows its changes. */
  async load() {
    this.stop();
    if (!this.entered || document.hidden) return;
    const reading = new AbortController();
    this.reading = reading;
    this.tell("reading …");
    try {
      let page = await this.read(reading.signal, false);
      this.keysOnly = page === null;
      page ??= await this.read(reading.signal, true);
      if (page === null) throw new Error("the keys of this page are too many bytes to show");
      if (this.reading !== reading) return;
      this.take(page);
      this.follow(page.revision);
    } catch (error) {
      if (this.reading === reading) this.failed(error.message, error.lasts === true);
    }
  }

  async read(signal, keysOnly) {
    const asked = new URLSearchParams({ prefix: this.prefix, limit: String(PAGE) });
    if (keysOnly) asked.set("keys_only", "true");
    // The query of the next page is used exactly as the relay sent it: a key may contain any bytes.
    const place = this.pager.place;
    const path = place ? `/v1/keys?${place}${keysOnly ? "&keys_only=true" : ""}` : `/v1/keys?${asked}`;
    const answer = await fetch(path, { signal, cache: "no-store" });
    if (!answer.ok) throw await refusal(answer);
    const text = await bounded(answer);
    return text === null ? null : JSON.parse(text);
  }

  take(page) {
    this.kvs.clear();
    for (const kv of page.kvs) this.kvs.set(keyId(kv), kv);
    this.count = page.count;
    this.pager.follows(page.next ?? null);
    // The page ends where the next one begins.
    this.to = page.next ? rawParameter(page.next, "from") : null;
    this.redraw();
  }

  follow(revision) {
    let path = `/v1/watch?prefix=${encodeURIComponent(this.prefix)}&mode=state&since=${revision}`;
    const from = this.pager.place && rawParameter(this.pager.place, "from");
    if (from) path += `&from=${from}`;
    if (this.to) path += `&to=${this.to}`;
    if (this.keysOnly) path += "&keys_only=true";
    const source = new EventSource(path);
    this.source = source;
    const on = (name, act) =>
      source.addEventListener(name, (event) => {
        if (source !== this.source) return;
        this.pause = FIRST_PAUSE;
        act(JSON.parse(event.data));
        this.redraw();
      });
    on("put", (kv) => this.put(kv));
    on("delete", (kv) => this.kvs.delete(keyId(kv)));
    on("snapshot", (part) => {
      if (part.first) this.kvs.clear();
      for (const kv of part.kvs) this.put(kv);
    });
    on("compacted", () => {});
    on("end", (end) => {
      source.close();
      this.failed(end.error, end.status >= 400 && end.status < 500);
    });
    let opened = null;
    source.addEventListener("open", () => {
      if (source !== this.source) return;
      opened = performance.now();
      this.tell(this.keysOnly ? "live; the values are too large for the list" : "live");
    });
    source.addEventListener("error", () => {
      if (source !== this.source) return;
      // A relay that refuses the stream, or ends it at once, is not asked for the page each second.
      if (opened !== null && performance.now() - opened > LONGEST_PAUSE) this.pause = FIRST_PAUSE;
      this.failed("the stream broke", false);
    });
  }

  put(kv) {
    // A key beyond the page belongs to the next one.
    const known = this.kvs.has(keyId(kv));
    if (!known && this.kvs.size >= 4 * PAGE) return;
    this.kvs.set(keyId(kv), { ...kv, changed: true });
  }

  failed(text, lasts) {
    this.stop();
    this.tell(lasts ? text : `${text}; retrying`, true);
    this.redraw();
    if (lasts) return;
    this.timer = setTimeout(() => this.load(), this.pause ?? FIRST_PAUSE);
    this.pause = Math.min((this.pause ?? FIRST_PAUSE) * 2, LONGEST_PAUSE);
  }

  tell(text, bad = false) {
    say(byId("keys-state"), text);
    dress(byId("keys-state"), bad ? "bad" : "quiet");
  }

  show() {
    const kvs = [...this.kvs.values()].sort(inOrder);
    this.rows.show(kvs);
    for (const kv of kvs) kv.changed = false;
    const whole = counted(kvs.length, "key", "keys");
    say(byId("keys-count"), this.to ? `${whole} of ${count(this.count)} from here on` : whole);
    const empty = byId("keys-empty");
    show(empty, kvs.length === 0 && this.source !== null);
    say(empty, this.prefix ? "No key has this prefix. A new key appears here at once." : "There are no keys. A new key appears here at once.");
    this.showChosen();
  }

  choose(kv) {
    this.chosen = kv && keyId(kv);
    this.showChosen();
    if (kv) byId("key-close").focus();
  }

  showChosen() {
    const panel = byId("key");
    show(panel, Boolean(this.chosen));
    if (!this.chosen) return;
    const kv = this.kvs.get(this.chosen);
    if (kv) this.last = kv;
    const shown = kv ?? this.last;
    if (!shown || keyId(shown) !== this.chosen) return;
    say(byId("key-name"), name(shown));
    const value = valueOf(shown);
    const facts = [
      ["Size", value === null ? "not read" : bytes(sizeOf(shown))],
      ["Created at revision", count(shown.create_revision)],
      ["Changed at revision", count(shown.mod_revision)],
      ["Version", count(shown.version)],
      ["Lease", shown.lease ? hexadecimal(shown.lease) : "none"],
    ];
    if (!kv) facts.unshift(["", "deleted"]);
    const list = byId("key-facts");
    while (list.children.length < facts.length) list.append(el("div", "", el("dt", "quiet", ""), el("dd", "num", "")));
    while (list.children.length > facts.length) list.lastElementChild.remove();
    facts.forEach(([term, fact], index) => {
      say(list.children[index].firstElementChild, term);
      say(list.children[index].lastElementChild, fact);
    });
    dress(panel, kv ? "panel" : "panel gone");
    const text = value === null ? "The values are not shown: this page of keys is too large." : pretty(value);
    say(byId("key-value"), text.length > SHOWN_WHOLE ? `${text.slice(0, SHOWN_WHOLE)}\n… (cut here)` : text);
  }
}

/** Pages of keys. Each is read by the query that the relay sent for it. */
class KeyPager extends Pager {
  constructor(node, go) {
    super(node, "keys", go);
    this.draw();
  }

  get place() {
    return this.after === 0 ? null : this.after;
  }

  follows(path) {
    // The revision is left out, so the page shows the current state instead of the one of the previous page.
    super.follows(path === null ? null : path.split("?")[1].split("&").filter((part) => !part.startsWith("revision=")).join("&"));
  }
}

class KeyRow {
  constructor(choose) {
    [this.node, this.cells] = cells([["Key", "mono wrap wide"], ["Value", "mono wide"], ["Changed at", "right num"], ["Version", "right num"]]);
    this.button = el("button", "plain mono", "");
    this.button.type = "button";
    this.button.addEventListener("click", () => choose(this.kv));
    this.value = el("span", "clip", "");
    this.cells[0].append(this.button);
    this.cells[1].append(this.value);
  }

  update(kv) {
    this.kv = kv;
    const [, , changed, version] = this.cells;
    say(this.button, name(kv));
    const value = valueOf(kv);
    say(this.value, value === null ? "not read" : value.length > SHOWN ? `${value.slice(0, SHOWN)}…` : value);
    say(changed, count(kv.mod_revision));
    say(version, count(kv.version));
    if (kv.changed && !stillness.matches) this.node.animate({ backgroundColor: ["var(--mark)", "transparent"] }, 1200);
  }
}

const keyId = (kv) => (kv.key === undefined ? `b${kv.key_base64}` : `t${kv.key}`);
const utf8 = new TextEncoder();

/** The bytes of a key as a text that sorts like the bytes. */
function order(kv) {
  kv.order ??= kv.key === undefined ? atob(kv.key_base64) : String.fromCharCode(...utf8.encode(kv.key));
  return kv.order;
}

function inOrder(one, other) {
  const [a, b] = [order(one), order(other)];
  return a < b ? -1 : a > b ? 1 : 0;
}

/** Bytes that are not text, in readable form. */
function escaped(base64) {
  return [...atob(base64)].map((char) => (char >= " " && char <= "~" && char !== "\\" ? char : `\\x${char.charCodeAt(0).toString(16).padStart(2, "0")}`)).join("");
}

function name(kv) {
  if (kv.key_base64 !== undefined) return escaped(kv.key_base64);
  return kv.key === "" ? "(the empty key)" : kv.key;
}

function valueOf(kv) {
  if (kv.value !== undefined) return kv.value;
  if (kv.value_base64 !== undefined) return escaped(kv.value_base64.slice(0, SHOWN_WHOLE));
  return null;
}

function sizeOf(kv) {
  return kv.value !== undefined ? utf8.encode(kv.value).length : atob(kv.value_base64).length;
}

function pretty(value) {
  if (!/^\s*[[{]/.test(value) || value.length > SHOWN_WHOLE) return value;
  try {
    return JSON.stringify(JSON.parse(value), null, 2);
  } catch {
    return value;
  }
}

const hexadecimal = (decimal) => BigInt.asUintN(64, BigInt(decimal)).toString(16);

/** A parameter of a path in its encoded form, which may not be UTF-8. */
function rawParameter(query, wanted) {
  const part = query.split("?").at(-1).split("&").find((one) => one.startsWith(`${wanted}=`));
  return part ? part.slice(wanted.length + 1) : null;
}

async function refusal(answer) {
  const text = await answer.text();
  let said = text;
  try {
    said = JSON.parse(text).error ?? text;
  } catch {
    // The refusal is not JSON.
  }
  if (answer.status === 404) said = "this relay does not serve keys over HTTP";
  const error = new Error(said.slice(0, 500) || `the relay answered with status ${answer.status}`);
  error.lasts = answer.status >= 400 && answer.status < 500 && answer.status !== 429;
  return error;
}

/** The text of an answer, or null if it is longer than a page may be. */
async function bounded(answer) {
  const reader = answer.body.getReader();
  const parts = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    length += value.length;
    if (length > MOST_BYTES) {
      await reader.cancel();
      return null;
    }
    parts.push(value);
  }
  const whole = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return new TextDecoder().decode(whole);
}
