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

// Round numbers for an axis that holds all values: two to five steps of 1, 2 or 5 times a power of ten.
export function ticks(values, unit) {
  let low = unit === "ms" ? 0 : Math.min(...values), high = Math.max(...values);
  const least = unit === "ms" ? 1 : 0.02;
  if (high - low < least) { low = Math.max(0, Math.min(low, high - least / 2)); high = low + least; }
  const rough = (high - low) / 3, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((n) => n * power >= rough);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  const top = unit === "share" ? Math.min(last, Math.round(1 / step)) : last;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: Math.max(top - first, 1) + 1 }, (_, n) => ({ value: (first + n) * step, text: ((first + n) * step).toFixed(digits) }));
}

// A line over versions: hollow points, the live one filled, failed ones red, the threshold dashed where there is one.
export function chart({ title, unit, points }) {
  const width = 340, height = 150, left = 42, right = 10, top = 10, bottom = 24;
  const limited = (p) => p.threshold !== null;
  const marks = ticks(points.flatMap((p) => limited(p) ? [p.value, p.threshold] : [p.value]), unit);
  const low = marks[0].value, high = marks.at(-1).value;
  const x = (n) => left + (points.length === 1 ? 0.5 : n / (points.length - 1)) * (width - left - right);
  const y = (v) => top + (1 - (v - low) / (high - low)) * (height - top - bottom);
  const line = (of) => points.map((p, n) => of(p) === null ? "" : `${n && of(points[n - 1]) !== null ? "L" : "M"}${x(n).toFixed(1)} ${y(of(p)).toFixed(1)}`).join("");
  const limit = (p) => limited(p) ? `${unit === "ms" ? "at most" : "at least"} ${figure(p.threshold, unit)} required` : "no limit yet";
  const say = (p) => `version ${p.version}: ${figure(p.value, unit)}, ${p.passed ? "passed" : "FAILED"} (${limit(p)})${p.live ? ", live" : ""}`;
  const step = Math.max(1, Math.ceil(points.length / 8));
  const last = points.at(-1);
  return h("figure", {},
    h("figcaption", {}, h("span", {}, title), h("span", {}, `version ${last.version}: `, h("b", {}, figure(last.value, unit)))),
    s("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${points.map(say).join("; ")}` },
      marks.map((m) => [
        s("line", { class: "axis", x1: left, x2: width - right, y1: y(m.value), y2: y(m.value) }),
        s("text", { x: left - 6, y: y(m.value) + 4, "text-anchor": "end" }, m.text),
      ]),
      points.length > 1
        ? [s("path", { class: "threshold", d: line((p) => p.threshold) }), s("path", { class: "line", d: line((p) => p.value) })]
        : limited(last) && s("line", { class: "threshold", x1: left, x2: width - right, y1: y(last.threshold), y2: y(last.threshold) }),
      points.map((p, n) => s("g", {},
        s("title", {}, say(p)),
        s("circle", { class: p.passed ? (p.live ? "live" : "") : "failed", cx: x(n), cy: y(p.value), r: 4 }),
        s("circle", { class: "hit", cx: x(n), cy: y(p.value), r: 12 }),
        (points.length - 1 - n) % step ? null : s("text", { x: x(n), y: height - 6, "text-anchor": "middle" }, `v${p.version}`),
      )),
    ));
}
