// Catalogue changes that shoppers do not see: pending ones, dead letters, and quarantined products.
import { chip, h, link } from "./draw.js";
import { age, count, when } from "./words.js";

const FIRST = 5;
const here = (name) => new URL(name, location.href).href;

export function changes({ queue, quarantine, problem }) {
  if (problem) return [h("p", { class: "problem soft" }, problem)];
  const troubles = [queue, quarantine].filter((part) => part.problem).map((part) => h("p", { class: "problem soft" }, part.problem));
  return [
    h("dl", { class: "figures" }, queue.problem ? "" : waiting(queue), quarantine.problem ? "" : figure("in quarantine", quarantine.count, true)),
    ...troubles,
    queue.problem ? "" : h("p", { class: "soft" }, `Changes come from the ${queue.name}. `, queue.oldest_note),
    queue.problem ? "" : deadLetters(queue),
    quarantine.problem ? "" : inQuarantine(quarantine),
  ].filter(Boolean);
}

const figure = (name, value, bad) => h("div", {}, h("dt", {}, name), h("dd", { class: bad && value ? "problem" : "" }, typeof value === "number" ? count(value) : value));

function waiting(queue) {
  return [
    figure(queue.waiting === 1 ? "pending change" : "pending changes", queue.waiting),
    queue.oldest && figure("oldest pending for", age(Date.parse(queue.oldest)) || "less than a minute"),
    queue.dead === null ? "" : figure(queue.dead === 1 ? "dead letter" : "dead letters", queue.dead, true),
  ];
}

function deadLetters(queue) {
  if (queue.dead_note) return h("p", { class: "problem soft" }, queue.dead_note);
  if (!queue.dead) return "";
  return h("div", { class: "listed" },
    h("h3", {}, "Dead letters"),
    h("p", { class: "soft" }, "Changes that could not be used. ", link("Download all as CSV", here("dead-letters.csv")), ". After fixing the cause, ", h("code", {}, queue.requeue), " sends them back to the queue; ", h("code", {}, "vitrine changes dead"), " lists the full messages."),
    table("letters", ["product", "reason", "since", "id"], queue.letters, queue.dead, (x) => [
      x.product_id ? h("td", { class: "mono" }, x.product_id) : h("td", { class: "soft" }, "unknown"),
      h("td", {}, x.reason), h("td", { class: "since" }, x.at ? when(Date.parse(x.at)) : "–"), h("td", { class: "mono id" }, x.id)]));
}

function inQuarantine(quarantine) {
  const { version, aliases } = quarantine;
  const where = version ? `index version ${version}${aliases.length ? ` (${aliases.join(", ")})` : ""}` : "the last run";
  if (!quarantine.count) return version ? h("p", { class: "soft" }, `No product of ${where} is in quarantine.`) : "";
  return h("div", { class: "listed" },
    h("h3", {}, "Products in quarantine"),
    h("p", { class: "soft" }, `Their pictures cannot be used, so ${where} does not show them. The next run tries each again whose picture was replaced. `, link("Download all as CSV", here("quarantine.csv")), "."),
    table("products", ["product", "picture", "reason", "run"], quarantine.products, quarantine.count, (x) => [
      x.product_id ? h("td", { class: "mono" }, x.product_id) : h("td", { class: "soft" }, "unknown"),
      h("td", { class: "mono" }, x.image), h("td", {}, h("span", {}, x.reason && chip(x.reason.replaceAll("_", " "), "down"), " ", x.detail)),
      h("td", { class: "mono" }, x.url ? link(x.run, x.url) : x.run)]));
}

// The first few rows, the rest of the sent rows folded, and the total.
function table(id, names, rows, total, cells) {
  const made = (some) => h("div", { class: "scroll" }, h("table", { class: "stacked" },
    h("thead", {}, h("tr", {}, names.map((t) => h("th", { scope: "col" }, t)))),
    h("tbody", {}, some.map((row) => h("tr", {}, cells(row).map((td, n) => { td.dataset.name = names[n]; return td; }))))));
  const rest = rows.slice(FIRST);
  return [
    made(rows.slice(0, FIRST)),
    rest.length ? h("details", { id: `more-${id}` }, h("summary", {}, `${rest.length} more`), made(rest)) : "",
    total > rows.length ? h("p", { class: "soft" }, `These are the newest ${count(rows.length)} of ${count(total)}.`) : "",
  ];
}
