// What embedding the catalogue costs, as rebuild_index planned it, and how far it is.
import { chip, h, link } from "./draw.js";
import { count, lasting, size, when } from "./words.js";

const STATES = { planned: "planned", asking: "awaits approval", embedding: "under way", done: "done" };
const KINDS = { planned: "", asking: "waiting", embedding: "running", done: "success" };

export function embedding(e) {
  const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  const known = e.pace.images_per_s > 0;
  return [
    h("div", { class: "headline" }, `encoder version ${e.encoder}`, chip(STATES[e.state], KINDS[e.state])),
    h("dl", { class: "figures" },
      fact("pictures to embed", count(e.to_embed)), fact("have a vector", count(e.stored)),
      e.titles?.titles > 0 && fact("titles to embed", count(e.titles.to_embed)),
      e.to_embed > 0 && [
        fact("pictures/s", known ? e.pace.images_per_s.toFixed(1) : "not known"), fact("time", known ? lasting(3600 * e.hours) : "not known"),
        fact("cost", known ? e.cost.toFixed(2) : "not known"), fact("in the store", size(e.bytes))]),
    e.to_embed > 0 && h("p", { class: "soft" }, e.pace.source),
    e.state === "embedding" && [
      h("progress", { max: e.to_embed, value: e.done, "aria-label": "pictures embedded" }),
      h("p", {}, `${count(e.done)} of ${count(e.to_embed)} pictures`, e.images_per_s ? `, ${e.images_per_s.toFixed(1)} a second, ${lasting(e.left_s)} left` : "",
        h("span", { class: "soft" }, " (told ", when(1000 * e.read_s), ")"))],
    h("p", { class: "soft" }, link(`MLflow run of ${e.run_key}`, e.url)),
  ].flat().filter(Boolean);
}
