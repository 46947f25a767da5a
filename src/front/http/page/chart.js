// A line chart of the last three minutes of one value.
//
// Always holds: a missing value is a gap, not a zero; each drawing replaces one path, however long the page was open.

import { el, say } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
/** The time span of the chart, in seconds. */
export const SPAN = 180;
const HEIGHT = 44;

export class Chart {
  /** `read(number)` formats a value; `least` is the smallest value for the top of the chart. */
  constructor(name, unit, read, least) {
    this.read = read;
    this.least = least;
    this.unit = unit;
    this.value = el("span", "chart-value num", "–");
    this.top = el("span", "chart-top num quiet", "");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${SPAN} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${name}, the last three minutes`);
    this.area = document.createElementNS(SVG, "path");
    this.area.setAttribute("class", "chart-area");
    this.line = document.createElementNS(SVG, "path");
    this.line.setAttribute("class", "chart-line");
    svg.append(this.area, this.line);
    const head = el("div", "chart-head", el("span", "chart-name", name), this.value);
    this.node = el("figure", "chart", head, svg, el("figcaption", "quiet", el("span", "", "3 min ago"), this.top, el("span", "", "now")));
  }

  /** Draws points of `[seconds, value or null]`; the last point is the current time. */
  draw(points) {
    const last = points.at(-1);
    if (!last) return;
    const now = last[0];
    const shown = points.filter(([at]) => at >= now - SPAN);
    const top = Math.max(this.least, ...shown.map(([, figure]) => figure ?? 0));
    say(this.value, last[1] === null ? "–" : `${this.read(last[1])}${this.unit}`);
    say(this.top, `top ${this.read(top)}${this.unit}`);
    let line = "";
    let area = "";
    let start = null;
    let x = 0;
    const end = () => {
      if (start !== null) area += `L${x} ${HEIGHT}L${start} ${HEIGHT}Z`;
      start = null;
    };
    for (const [at, figure] of shown) {
      if (figure === null) {
        end();
        continue;
      }
      x = (SPAN - (now - at)).toFixed(1);
      const y = (HEIGHT - 1 - (figure / top) * (HEIGHT - 3)).toFixed(1);
      line += `${start === null ? "M" : "L"}${x} ${y}`;
      area += `${start === null ? "M" : "L"}${x} ${y}`;
      if (start === null) start = x;
    }
    end();
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
  }
}
