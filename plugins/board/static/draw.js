// Small builders: elements without markup strings (nothing that comes from outside is ever parsed as HTML), and a line chart.

const SVG = "http://www.w3.org/2000/svg";

export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((c) => c !== null && c !== undefined && c !== false && c !== ""));
  return element;
}

export const chip = (text, kind = text) => h("span", { class: `chip ${kind}` }, text);

// Airflow frames this page in a sandbox that lets no link leave it: the click is made in the page around it.
export function link(text, url, kind = "") {
  return h("a", { href: url, target: "_blank", rel: "noopener", class: kind, onclick: (event) => {
    if (window.parent === window) return;
    try {
      const outer = window.parent.document.createElement("a");
      Object.assign(outer, { href: url, target: "_blank", rel: "noopener" });
      outer.click();
      event.preventDefault();
    } catch { /* framed by another site: the browser decides */ }
  } }, text);
}

export function figure(value, unit) {
  if (unit === "ms") return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  return value.toFixed(3);
}

// A line over versions: hollow points, the live one filled, failed ones red, the threshold dashed.
export function chart({ title, unit, points }) {
  const width = 340, height = 150, left = 42, right = 10, top = 10, bottom = 24;
  const values = points.flatMap((p) => [p.value, p.threshold]);
  let low = Math.min(...values), high = Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * 0.12;
  low -= room; high += room;
  if (unit === "share") { low = Math.max(low, 0); high = Math.min(high, 1); if (high - low < 0.02) low = Math.max(0, high - 0.02); }
  if (unit === "ms") { low = 0; const unit10 = 10 ** Math.floor(Math.log10(high)); high = Math.ceil(high / unit10 / 2) * unit10 * 2; }
  const x = (n) => left + (points.length === 1 ? 0.5 : n / (points.length - 1)) * (width - left - right);
  const y = (v) => top + (1 - (v - low) / (high - low)) * (height - top - bottom);
  const path = (of) => points.map((p, n) => `${n ? "L" : "M"}${x(n).toFixed(1)} ${y(of(p)).toFixed(1)}`).join("");
  const say = (p) => `version ${p.version}: ${figure(p.value, unit)}, ${p.passed ? "passed" : "FAILED"} (asked for ${figure(p.threshold, unit)})${p.live ? ", live" : ""}`;
  const step = Math.max(1, Math.ceil(points.length / 8));
  const last = points.at(-1);
  return h("figure", {},
    h("figcaption", {}, h("span", {}, title), h("span", {}, "newest ", h("b", {}, figure(last.value, unit)))),
    s("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${points.map(say).join("; ")}` },
      [low, (low + high) / 2, high].map((v) => [
        s("line", { class: "axis", x1: left, x2: width - right, y1: y(v), y2: y(v) }),
        s("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, unit === "ms" ? Math.round(v) : v.toFixed(2)),
      ]),
      points.length > 1
        ? [s("path", { class: "threshold", d: path((p) => p.threshold) }), s("path", { class: "line", d: path((p) => p.value) })]
        : s("line", { class: "threshold", x1: left, x2: width - right, y1: y(last.threshold), y2: y(last.threshold) }),
      points.map((p, n) => s("g", {},
        s("title", {}, say(p)),
        s("circle", { class: p.passed ? (p.live ? "live" : "") : "failed", cx: x(n), cy: y(p.value), r: 4 }),
        s("circle", { class: "hit", cx: x(n), cy: y(p.value), r: 12 }),
        (points.length - 1 - n) % step ? null : s("text", { x: x(n), y: height - 6, "text-anchor": "middle" }, `v${p.version}`),
      )),
    ));
}
