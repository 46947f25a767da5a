// Lainlet's views: the list of paths, and one view as it changes.
//
// Always holds: at most one view is followed, and none while this part or the page is hidden; a long text is cut.

import { byId, count, counted, dress, el, say, show } from "./dom.js";

/** Longest view that is shown, in characters. */
const SHOWN = 200000;
const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 10000;

export class Views {
  constructor() {
    this.entered = false;
    this.items = null;
    document.addEventListener("visibilitychange", () => this.entered && (document.hidden ? this.stop() : this.resume()));
    window.addEventListener("pagehide", () => this.stop());
  }

  async enter() {
    this.entered = true;
    if (this.items === null) await this.list();
    this.resume();
  }

  leave() {
    this.entered = false;
    this.stop();
  }

  stop() {
    this.source?.close();
    this.source = null;
    clearTimeout(this.timer);
  }

  async list() {
    const empty = byId("views-empty");
    show(empty, true);
    say(empty, "reading …");
    try {
      const answer = await fetch("/debug/state/views");
      if (!answer.ok) throw new Error(await answer.text());
      const { views } = await answer.json();
      this.items = views;
      say(empty, "Lainlet's views are off on this relay (--lainlet off).");
      show(empty, views.length === 0);
      byId("views").replaceChildren(...views.map((view) => this.item(view)));
    } catch (error) {
      say(empty, `Cannot list the views: ${error.message}`);
    }
  }

  item(view) {
    const link = el("a", "mono", view.path);
    link.href = view.path;
    const line = el("div", "view-line", link);
    let field = null;
    if (view.parameter) {
      field = el("input", "mono");
      field.type = "text";
      field.placeholder = view.parameter;
      field.setAttribute("aria-label", `${view.parameter} for ${view.path}`);
      field.spellcheck = false;
      field.autocomplete = "off";
      line.append(field);
    }
    const button = el("button", "", view.watch ? "Follow" : "Read");
    button.type = "button";
    button.setAttribute("aria-label", `${view.watch ? "Follow" : "Read"} ${view.path}`);
    const path = () => (field && field.value ? `${view.path}?${new URLSearchParams({ [view.parameter]: field.value })}` : view.path);
    const go = () => this.choose(path(), view.watch);
    button.addEventListener("click", go);
    field?.addEventListener("input", () => {
      link.href = path();
    });
    field?.addEventListener("keydown", (event) => event.key === "Enter" && go());
    line.append(button);
    return el("li", "", line);
  }

  choose(path, watched) {
    this.stop();
    this.path = path;
    this.watched = watched;
    this.updates = 0;
    this.pause = FIRST_PAUSE;
    show(byId("view"), true);
    say(byId("view-name"), path);
    say(byId("view-text"), "");
    this.resume();
  }

  resume() {
    if (!this.entered || !this.path || document.hidden || this.source) return;
    if (this.watched) this.follow();
    else this.read();
  }

  async read() {
    const path = this.path;
    try {
      const answer = await fetch(path, { cache: "no-store" });
      const text = await answer.text();
      if (path !== this.path) return;
      if (answer.ok) this.tell("read once", text);
      else this.tell(`status ${answer.status}`, text, true);
    } catch {
      if (path === this.path) this.tell("the relay does not answer", null, true);
    }
  }

  follow() {
    this.tell("connecting");
    const source = new EventSource(`${this.path}${this.path.includes("?") ? "&" : "?"}watch=1&heartbeat=20`);
    this.source = source;
    const told = (event) => {
      if (source !== this.source) return;
      this.pause = FIRST_PAUSE;
      this.updates += 1;
      this.tell(`live, ${counted(this.updates, "state", "states")}`, event.data);
    };
    for (const kind of ["init", "update", "delete"]) source.addEventListener(kind, told);
    source.addEventListener("error", (event) => {
      if (source !== this.source) return;
      this.stop();
      // An error event of the relay has data; one from a broken stream has none.
      const said = typeof event.data === "string" ? event.data : null;
      this.tell(said === null ? "disconnected, retrying" : "ended, retrying", said, true);
      this.timer = setTimeout(() => this.resume(), this.pause);
      this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
    });
  }

  tell(state, text = null, bad = false) {
    say(byId("view-state"), state);
    dress(byId("view-state"), bad ? "bad num" : "quiet num");
    if (text !== null) say(byId("view-text"), pretty(text));
  }
}

function pretty(text) {
  let shown = text;
  if (text.length <= SHOWN) {
    try {
      shown = JSON.stringify(JSON.parse(text), null, 2);
    } catch {
      // The text of an error is not JSON.
    }
  }
  return shown.length > SHOWN ? `${shown.slice(0, SHOWN)}\n… (${count(shown.length)} characters, cut here)` : shown;
}
