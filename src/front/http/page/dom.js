// Helpers for elements, table rows and numbers.
//
// Always holds: data from the relay enters the page through textContent, so it is always shown as text;
// an element is changed only when what it shows has changed.

export const byId = (id) => document.getElementById(id);

/** An element with a class and children; strings become text. */
export function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

/** Sets the text of an element. */
export function say(node, text) {
  const shown = String(text);
  if (node.textContent !== shown) node.textContent = shown;
}

/** Sets the class of an element. */
export function dress(node, className) {
  if (node.className !== className) node.className = className;
}

/** Shows or hides an element. */
export function show(node, is) {
  if (node.hidden === is) node.hidden = !is;
}

/** The rows of a table, which are reused by their keys when the table is shown again. */
export class Rows {
  /** `make` creates a row, which has a method `update(item)`; `id` returns the key of an item. */
  constructor(body, id, make) {
    this.body = body;
    this.id = id;
    this.make = make;
    this.rows = new Map();
  }

  /** Shows these items in this order. */
  show(items) {
    const kept = new Map();
    let at = this.body.firstChild;
    for (const item of items) {
      const id = this.id(item);
      const row = this.rows.get(id) ?? this.make();
      row.update(item);
      kept.set(id, row);
      if (row.node === at) at = at.nextSibling;
      else this.body.insertBefore(row.node, at);
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
    this.rows = kept;
  }

  get(id) {
    return this.rows.get(id);
  }
}

/** A row with a cell per name; on a narrow screen each cell shows its name. Roles are explicit, because a table that is laid out as cards loses them. */
export function cells(names) {
  const node = el("tr");
  node.setAttribute("role", "row");
  const made = names.map(([name, className]) => {
    const cell = el("td", className);
    cell.setAttribute("role", "cell");
    cell.dataset.name = name;
    node.append(cell);
    return cell;
  });
  return [node, made];
}

/** Wraps a function so that it runs once in the next frame, however often it is called. */
export function eachFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export const count = (number) => whole.format(number);

/** "1 watch", "1,200 watches". */
export const counted = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;

/** A rate; small ones have one decimal. */
export function rate(number) {
  return number > 0 && number < 9.95 ? tenth.format(number) : count(number);
}

export function percent(part) {
  const number = part * 100;
  return `${number < 9.95 ? tenth.format(number) : count(number)} %`;
}

export function bytes(number) {
  if (number === null || number === undefined) return "unknown";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${unit > 0 && number < 99.5 ? tenth.format(number) : count(number)} ${units[unit]}`;
}

/** "under 1 s", "3.2 s", "5 min", "2 h 5 min", "3 d 4 h". */
export function time(seconds) {
  if (seconds > 0 && seconds < 0.95) return "under 1 s";
  if (seconds < 9.95) return `${Number.isInteger(seconds) ? seconds : tenth.format(seconds)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** The previous and next buttons of a list that is shown in pages. */
export class Pager {
  /** `go(after)` must show the page after a row. */
  constructor(node, name, go) {
    this.node = node;
    this.go = go;
    this.before = [];
    this.after = 0;
    this.next = null;
    this.back = el("button", "", "‹ Previous");
    this.forth = el("button", "", "Next ›");
    for (const [button, what] of [[this.back, "Previous"], [this.forth, "Next"]]) {
      button.type = "button";
      button.setAttribute("aria-label", `${what} ${name}`);
    }
    this.back.addEventListener("click", () => this.move(this.before.pop() ?? 0));
    this.forth.addEventListener("click", () => {
      if (this.next === null) return;
      this.before.push(this.after);
      this.move(this.next);
    });
    node.append(this.back, this.forth);
  }

  move(after) {
    this.after = after;
    this.next = null;
    this.draw();
    this.go(after);
  }

  /** Returns to the first page without loading it. */
  reset() {
    this.before = [];
    this.after = 0;
    this.next = null;
    this.draw();
  }

  /** Sets the row after which the next page begins; null if there is none. */
  follows(next) {
    this.next = next;
    this.draw();
  }

  draw() {
    const first = this.before.length === 0;
    this.back.disabled = first;
    this.forth.disabled = this.next === null;
    show(this.node, !(first && this.next === null));
  }
}

/** The number in the path of the next page. */
export function nextAfter(path) {
  const found = path === null || path === undefined ? null : /[?&]after=(\d+)/.exec(path);
  return found ? Number(found[1]) : null;
}
