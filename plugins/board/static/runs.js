// Runs of the DAGs with the reasons of failures, and when each DAG runs next.
import { chip, h, link } from "./draw.js";
import { soon, when } from "./words.js";

export const runUrl = (r) => new URL(`../dags/${r.dag}/runs/${encodeURIComponent(r.run)}`, location.href).href;
const FIRST_RUNS = 12;

// The newest runs, those after the first few folded. `open` holds the ids of unfolded parts.
export function runs(list, open) {
  if (!list.length) return [h("p", { class: "soft" }, "No DAG has run yet.")];
  const rest = list.slice(FIRST_RUNS);
  return [runTable(list.slice(0, FIRST_RUNS)),
    rest.length ? h("details", { id: "more-runs", open: open.has("more-runs"), ontoggle: (e) => e.target.open ? open.add("more-runs") : open.delete("more-runs") },
      h("summary", {}, `${rest.length} more`), runTable(rest)) : ""].filter(Boolean);
}

function runTable(some) {
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["DAG", "state", "started", "by"].map((t) => h("th", { scope: "col" }, t)))), h("tbody", {},
    some.map((r) => [h("tr", { class: (r.note || r.state === "failed") && "noted" },
      h("td", {}, link(r.dag, runUrl(r)), r.conf?.version ? ` version ${r.conf.version}` : "",
        r.waiting.map((w) => h("p", { class: "soft" }, "awaits input: ", link(w.subject, `${runUrl(r)}/tasks/${w.task}/required_actions`)))),
      h("td", {}, chip(r.waiting.length ? "waiting" : r.state, r.waiting.length ? "waiting" : r.state)),
      h("td", {}, r.began ? when(new Date(r.began).getTime()) : "–"), h("td", {}, r.by)),
      why(r).length > 0 && h("tr", {}, h("td", { colspan: 4 }, why(r)))]))));
}

// Why a run failed, and what else its tasks had to say: the run's note in Airflow.
function why(r) {
  const lines = r.note.split("\n").filter(Boolean);
  if (r.state === "failed" && !lines.some((line) => line.includes(" failed: "))) lines.unshift("failed: the log of its failed task says why");
  return lines.map((line) => h("p", { class: `note ${/^(\S+ )?failed: /.test(line) ? "problem" : "soft"}` }, line));
}

// When each DAG runs next.
export function schedule(list) {
  if (!list.length) return h("p", { class: "soft" }, "Airflow's schedule cannot be seen with your permissions.");
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["DAG", "next run"].map((t) => h("th", { scope: "col" }, t)))), h("tbody", {},
    [...list].sort((a, b) => (a.next || "9").localeCompare(b.next || "9")).map((s) => h("tr", {}, h("td", {}, link(s.dag, new URL(`../dags/${s.dag}`, location.href).href), h("p", { class: "soft" }, s.description)),
      h("td", { class: "since" }, s.paused ? chip("paused", "waiting") : s.next ? soon(Date.parse(s.next)) : h("span", { class: "soft" }, STARTS[s.dag] ?? "by hand")))))));
}

const STARTS = { promote_index: "with a new candidate" };
