// Gates of index and encoder versions.
import { chip, h, link } from "./draw.js";
import { when } from "./words.js";

// Each gate with its sentence, which holds the value and the limit.
export const gateTable = (gates) => h("table", { class: "stacked" },
  h("thead", {}, h("tr", {}, ["gate", "result", "measured"].map((t) => h("th", { scope: "col" }, t)))),
  h("tbody", {}, gates.map((g) => h("tr", {}, [h("td", { class: "mono" }, g.name), h("td", {}, chip(g.passed ? "passed" : "failed")), h("td", {}, g.reason)]
    .map((td, n) => { td.dataset.name = ["gate", "result", "measured"][n]; return td; })))));

// Encoder versions with what their evaluation measured. `open` holds the ids of unfolded parts.
export function encoders(list, open) {
  if (!list.length) return h("p", { class: "soft" }, "No encoder yet: run the DAG train_encoder.");
  return h("ul", { class: "plain" }, list.map((e) => {
    const bad = e.gates.filter((g) => !g.passed), key = `encoder-${e.version}`;
    return h("li", {},
      h("div", { class: "row" }, h("h3", {}, `Version ${e.version}`), e.aliases.map((a) => chip(a, a === "champion" ? "live" : "")),
        e.verdict && chip(e.verdict.startsWith("failed") ? "failed" : "passed"), h("span", { class: "soft" }, e.preset && `${e.preset}, `, when(e.created_ms)), e.gates.length ? gateMarks(e.gates) : ""),
      h("p", { class: "soft" }, e.description),
      bad.length ? bad.map((g) => h("p", { class: "problem soft" }, `${g.name}: ${g.reason}`)) : e.verdict.startsWith("failed") ? h("p", { class: "problem soft" }, e.verdict) : "",
      h("details", { open: open.has(key), ontoggle: (event) => event.target.open ? open.add(key) : open.delete(key) }, h("summary", {}, "gates, links"),
        h("div", { class: "inside" }, e.gates.length ? gateTable(e.gates) : h("p", { class: "soft" }, "This version was not evaluated, or its evaluation is no longer kept."),
          h("div", { class: "links" }, Object.entries(e.links).map(([name, url]) => link(name, url))))));
  }));
}

// One mark per gate.
export function gateMarks(gates) {
  const text = `${gates.filter((g) => g.passed).length} of ${gates.length} gates passed`;
  return h("span", { class: "gates", role: "img", "aria-label": text, title: text }, gates.map((g) => h("i", { class: g.passed ? "" : "failed" })));
}
