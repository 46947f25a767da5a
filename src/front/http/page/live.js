// Follows the state of the relay: one stream of server-sent events, open while the page is visible.
//
// Always holds: at most one stream is open, and none while the page is hidden; a broken or silent stream is opened again, after pauses that
// grow to ten seconds; a refusal is shown in the relay's words.

const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 10000;
/** A stream sends something every few seconds; one that is silent for this long is broken. */
const SILENCE = 15000;

export class Live {
  /** `told(state)` receives each state, `stands(what, text)` the status of the stream: connecting, live, paused, lost, refused. */
  constructor(told, stands) {
    this.told = told;
    this.stands = stands;
    this.path = null;
    this.source = null;
    this.pause = FIRST_PAUSE;
    this.timer = null;
    this.watchdog = null;
    /** Rises with each stream that is opened or closed, so that a late answer about an earlier one is ignored. */
    this.turn = 0;
    document.addEventListener("visibilitychange", () => this.look());
    // The browser closed the stream of a page that comes back from its memory.
    window.addEventListener("pageshow", (event) => event.persisted && this.look());
    window.addEventListener("pagehide", () => this.close());
    window.addEventListener("online", () => this.look());
  }

  /** Switches to another part of the state. */
  follow(path) {
    if (path === this.path) return;
    this.path = path;
    this.look();
  }

  look() {
    this.close();
    if (this.path === null) return;
    if (document.hidden) {
      this.stands("paused", "paused while hidden");
      return;
    }
    this.open();
  }

  open() {
    this.close();
    const source = new EventSource(this.path);
    this.source = source;
    source.addEventListener("state", (event) => {
      if (source !== this.source) return;
      this.pause = FIRST_PAUSE;
      this.heard();
      this.stands("live", "live");
      this.told(JSON.parse(event.data));
    });
    source.addEventListener("error", () => source === this.source && this.broken());
    this.heard();
  }

  heard() {
    clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => this.broken(), SILENCE);
  }

  close() {
    this.turn += 1;
    clearTimeout(this.timer);
    clearTimeout(this.watchdog);
    this.source?.close();
    this.source = null;
  }

  /** An EventSource does not report the reason, so the same path is read without the stream. */
  async broken() {
    this.close();
    const turn = this.turn;
    let [what, text] = ["lost", "the relay does not answer"];
    try {
      const answer = await fetch("/debug/state?feeds=0&connections=0", { signal: AbortSignal.timeout(5000) });
      if (answer.status === 403) [what, text] = ["refused", await answer.text()];
      else if (!answer.ok) text = `the relay answered with status ${answer.status}: ${(await answer.text()).slice(0, 300)}`;
      else text = "the stream broke";
    } catch {
      // The relay does not answer, as the text already says.
    }
    if (turn !== this.turn || document.hidden) return;
    this.stands(what, text, this.pause);
    this.timer = setTimeout(() => this.open(), this.pause);
    this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
  }
}
