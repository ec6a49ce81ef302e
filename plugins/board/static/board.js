// The release board: reads its data, draws it, and asks before it acts. The page holds no rules: what may be done is told by the server.
import { changes } from "./changes.js";
import { chart, chip, figure, h, link } from "./draw.js";
import { embedding } from "./embedding.js";
import { encoders, gateMarks, gateTable } from "./gates.js";
import { runs, runUrl, schedule } from "./runs.js";
import { count, size, when } from "./words.js";

const $ = (id) => document.getElementById(id);
const QUICK_MS = 3000, CALM_MS = 15000;
const open = new Set();
const state = { data: null, runs: [], schedule: [], error: "", drawn: "", watched: "", changes: "" };

// ---------------------------------------------------------------- talking to the server

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", headers: { accept: "application/json", ...options.headers }, ...options });
  } catch {
    throw new Error("Airflow does not answer");
  }
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401) { location.reload(); throw new Error("your session ended: log in again"); }
  if (!answer.ok) {
    const detail = body.detail;
    throw new Error(typeof detail === "string" ? detail : Array.isArray(detail) ? detail.map((d) => d.msg).join("; ") : `Airflow answered ${answer.status}`);
  }
  return body;
}

const act = (action, body) => ask(`actions/${action}`, {
  method: "POST", headers: { "content-type": "application/json", "x-vitrine": "release-board" }, body: JSON.stringify(body ?? {}),
});

// The queue may be slow or away: its section is read and drawn on its own.
async function refreshChanges() {
  let found;
  try { found = await ask("changes"); } catch (error) { found = { problem: error.message }; }
  const key = JSON.stringify(found);
  if (key === state.changes && !found.queue?.oldest) return;
  state.changes = key;
  const open = [...$("changes").querySelectorAll("details[open]")].map((d) => d.id);
  $("changes").replaceChildren(...changes(found));
  for (const id of open) $(id)?.setAttribute("open", "");
}

let reading;
async function refresh() {
  reading ??= refreshChanges().finally(() => { reading = undefined; });
  // Runs first: what a run that is done has made is then in the data.
  const [runs] = await Promise.allSettled([ask("runs")]);
  const [data] = await Promise.allSettled([ask("data")]);
  state.error = data.status === "rejected" ? data.reason.message : "";
  if (data.status === "fulfilled") state.data = data.value;
  if (runs.status === "fulfilled") Object.assign(state, { runs: runs.value.runs, schedule: runs.value.schedule });
  draw();
}

let timer;
async function loop() {
  clearTimeout(timer);
  if (!document.hidden) await refresh();
  timer = setTimeout(loop, busy().length || state.watched ? QUICK_MS : CALM_MS);
}

const busy = () => state.runs.filter((r) => r.state === "queued" || r.state === "running");

// ---------------------------------------------------------------- words

const percent = (share) => `${(100 * share).toFixed(share && share < 0.1 ? 1 : 0)} %`;
const gate = (entry, name) => entry.gates.find((g) => g.name === name);
const host = (url) => url.replace(/^https?:\/\//, "");

// ---------------------------------------------------------------- drawing

function draw() {
  const minute = Math.floor(Date.now() / 60000); // times are relative: they are drawn anew every minute
  const key = JSON.stringify([state.data && { ...state.data, read_at: "" }, state.runs, state.schedule, state.error, minute]);
  if (state.data) $("read").textContent = `read ${new Date(state.data.read_at).toLocaleTimeString()}`;
  if (state.error) say(state.error, "bad");
  else if ($("notice").dataset.kind === "bad" && $("notice").dataset.from === "refresh") $("notice").hidden = true;
  if (key === state.drawn || !state.data) { document.body.dataset.ready = "1"; return; }
  state.drawn = key;
  const held = document.activeElement?.dataset?.key;
  const d = state.data;
  $("who").textContent = Object.values(d.may).some(Boolean) ? `signed in as ${d.user}` : `signed in as ${d.user}: read-only; actions need an operator`;
  $("live").replaceChildren(...live(d));
  $("runs").replaceChildren(...runs(state.runs, open));
  $("embedding-section").hidden = !d.embedding?.encoder;
  if (d.embedding?.encoder) $("embedding").replaceChildren(...embedding(d.embedding));
  $("schedule").replaceChildren(schedule(state.schedule));
  $("replicas").replaceChildren(replicas(d));
  $("charts").replaceChildren(...(d.charts.length ? d.charts.map(chart) : [h("p", { class: "soft" }, "No measurements yet.")]));
  $("versions").replaceChildren(...d.versions.map((v) => version(v, d)));
  if (!d.versions.length) $("versions").replaceChildren(h("li", { class: "soft" }, "No index version yet."));
  $("encoders").replaceChildren(encoders(d.encoders, open));
  $("trace-section").hidden = !d.live;
  if (held) document.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
  document.body.dataset.ready = "1";
  watch();
}

function say(text, kind = "", from = "refresh") {
  const notice = $("notice");
  notice.replaceChildren(...[text].flat());
  notice.className = kind;
  Object.assign(notice.dataset, { kind, from });
  notice.hidden = false;
}

function live(d) {
  const entry = d.versions.find((v) => v.version === d.live);
  if (!entry) return [empty(d)];
  const recall = gate(entry, "photo_recall"), p99 = gate(entry, "p99_ms");
  const previous = d.previous && d.previous !== d.live ? d.previous : "";
  // After a rollback the other version is the newer one: going there is no going back.
  const newer = Number(previous) > Number(d.live), back = newer ? "Return to" : "Roll back to";
  const withdrawn = d.versions.find((v) => v.version === previous)?.withdrawn;
  const down = d.replicas.filter((r) => r.problem);
  const slot = Object.entries(d.slots).find(([, v]) => v === d.live)?.[0] ?? "";
  return [
    h("div", {},
      h("div", { class: "headline" }, h("b", {}, `Version ${d.live}`), chip("live"), slot && chip(slot),
        down.length ? chip(`${down.length} of ${d.replicas.length} replicas need attention`, "down") : d.replicas.length ? chip(`on all ${d.replicas.length} replicas`, "ready") : chip("no replicas configured")),
      h("p", { class: "soft" }, "made ", when(entry.created_ms), `, encoder version ${entry.encoder}, snapshot `, h("span", { class: "mono" }, entry.snapshot)),
      h("dl", { class: "figures" },
        fact("products", count(entry.products)), recall && fact(entry.recall_of, figure(recall.value, "share")),
        p99 && fact("p99 per photo", figure(p99.value, "ms")), fact("added by updates", percent(entry.delta_share))),
      h("div", { class: "buttons" },
        button("rollback", previous ? `${back} version ${previous}` : "Roll back", d, previous ? "" : "there is no previous version",
          { title: `${back} version ${previous}?`, yes: newer ? "Return" : "Roll back", text: [
            h("p", {}, newer ? `Version ${previous} was live before version ${d.live}. Shoppers get it again, in seconds: every replica still holds it.`
              : `Shoppers get version ${previous} again, in seconds: every replica still holds it.`),
            withdrawn && h("p", { class: "problem" }, `Version ${previous} ${withdrawn}`),
            h("ul", {}, h("li", {}, `Version ${d.live} stays in its slot and can be promoted again.`), h("li", {}, "Embeddings and indexes are not touched."), h("li", {}, "A running promotion is cancelled.")),
          ].filter(Boolean) }, previous ? { version: previous } : undefined),
        button("rebuild", "Rebuild", d, "",
          { title: "Rebuild the index?", yes: "Rebuild", text: [
            h("p", {}, "The DAG rebuild_index takes a new snapshot and makes a new version from it. Pictures that were embedded before are not embedded again."),
            h("ul", {}, h("li", {}, "If nothing changed since the live version, nothing is built."), h("li", {}, "A version that passes its gates is promoted by promote_index.")),
          ] }))),
    h("div", { class: "slots" }, ["blue", "green"].map((name) => slotCard(name, d))),
  ];
}

const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

function slotCard(name, d) {
  const held = d.replicas.map((r) => r.slots.find((s) => s.name === name)).filter(Boolean);
  const wanted = d.slots[name];
  const ready = held.filter((s) => s.version === wanted && s.state === "ready").length;
  const failed = held.find((s) => s.state === "failed");
  const serves = wanted && wanted === d.live;
  const words = !wanted ? "empty" : failed ? "failed" : ready === d.replicas.length ? "ready" : "loading";
  return h("div", { class: `slot ${name}` },
    h("div", { class: "row" }, h("h3", {}, name), serves ? chip("live") : wanted ? chip("idle", "") : "", wanted && !serves ? chip(words) : ""),
    h("p", {}, wanted ? `version ${wanted}` : "empty"),
    h("p", { class: "soft" }, wanted ? `ready on ${ready} of ${d.replicas.length} replicas` : "the next version is loaded here"),
    failed && h("p", { class: "problem soft" }, failed.reason));
}

function empty(d) {
  const made = d.versions.length;
  return h("div", { class: "empty" },
    h("div", { class: "headline" }, h("b", {}, "Nothing is live yet")),
    h("p", { class: "soft" }, made ? `${made} version${made > 1 ? "s were" : " was"} made and none was promoted. See why below.` : "How the first version is made:"),
    made ? "" : h("ol", {},
      h("li", {}, h("b", {}, "train_encoder"), " makes an encoder from the catalogue's photos and pictures", d.champion ? h("span", { class: "soft" }, ` (done: version ${d.champion} is champion)`) : ""),
      h("li", {}, h("b", {}, "rebuild_index"), " embeds the catalogue and builds version 1; a new champion triggers it automatically"),
      h("li", {}, h("b", {}, "promote_index"), " puts it live on every replica")),
    h("div", { class: "buttons" }, button("rebuild", "Build the first version", d, d.champion ? "" : "there is no champion encoder yet: run train_encoder first",
      { title: "Build an index version?", yes: "Build", text: [h("p", {}, "The DAG rebuild_index takes a snapshot of the catalogue, embeds its pictures and builds a version.")] })));
}

function button(action, text, d, missing, question, body, strong) {
  const why = missing || (d.may[action] ? "" : "needs operator permission");
  return h("button", { type: "button", class: strong ? "strong" : "", "data-key": `${action}${body?.version ?? ""}`,
    disabled: Boolean(why), title: why, onclick: () => confirm(action, question, body) }, text);
}

function replicas(d) {
  if (!d.replicas.length) return h("p", { class: "soft" }, "VITRINE_SERVING_URLS names no replica, so promotions do not wait for any.");
  const cell = (r, name) => {
    const s = r.slots.find((x) => x.name === name);
    return !s ? "" : h("td", {}, h("div", { class: "row" }, s.version ? `v${s.version}` : "–", s.state !== "empty" && chip(s.state)));
  };
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ["replica", "serves", "blue", "green"].map((t) => h("th", { scope: "col" }, t)))),
    h("tbody", {}, d.replicas.map((r) => [
      h("tr", {}, h("td", {}, link(host(r.url), r.url), r.problem && h("p", { class: "problem soft" }, r.problem)),
        r.answers ? [h("td", {}, r.live ? h("div", { class: "row" }, `v${r.live}`, chip(r.live === d.live ? "live" : "behind", r.live === d.live ? "live" : "down")) : "nothing"), cell(r, "blue"), cell(r, "green")]
          : h("td", { colspan: 3 }, chip("down"))),
    ]))));
}

function version(v, d) {
  const recall = gate(v, "photo_recall"), p99 = gate(v, "p99_ms");
  const bad = v.gates.filter((g) => !g.passed);
  const details = h("details", { open: open.has(v.version), ontoggle: (e) => {
    e.target.open ? open.add(v.version) : open.delete(v.version);
    if (e.target.open) unfold(e.target, v, d);
  } }, h("summary", { "data-key": `details${v.version}` }, "gates, lineage, links"));
  if (open.has(v.version)) unfold(details, v, d);
  return h("li", { class: v.status, id: `version-${v.version}` },
    h("div", { class: "row" },
      h("h3", {}, `Version ${v.version}`), chip(v.status), v.aliases.filter((a) => a !== v.status && a !== "candidate").map((a) => chip(a)),
      h("span", { class: "soft" }, `${v.meaning}, made `, when(v.created_ms)),
      v.gates.length ? gateMarks(v.gates) : "",
      v.may_promote ? h("span", { class: "push" }, button("promote", "Promote", d, "", {
        title: `Promote version ${v.version}?`, yes: "Promote", text: [
          h("p", {}, d.live ? `Shoppers get version ${v.version} instead of version ${d.live}.` : `Version ${v.version} becomes the first that shoppers get.`),
          h("ul", {}, h("li", {}, "The idle slot of every replica loads and verifies it first; queries are replayed against both."), h("li", {}, "If a replica cannot hold it, nothing changes for shoppers."),
            d.live ? h("li", {}, `Version ${d.live} stays loaded: a rollback takes seconds.`) : ""),
        ] }, { version: v.version }, v.status === "candidate")) : ""),
    v.problem ? h("p", { class: "problem soft" }, v.problem) : "",
    v.withdrawn ? h("p", { class: "problem soft" }, v.withdrawn) : "",
    bad.map((g) => h("p", { class: "problem soft" }, `${g.name}: ${g.reason}`)),
    h("div", { class: "facts" }, h("span", {}, h("b", {}, count(v.products)), " products", v.quarantined ? `, ${count(v.quarantined)} in quarantine` : "", v.quarantined_rows ? `, ${count(v.quarantined_rows)} unusable rows` : ""),
      h("span", {}, "encoder ", h("b", {}, v.encoder || "?")), recall && h("span", {}, `${v.recall_of} `, h("b", {}, figure(recall.value, "share"))),
      p99 && h("span", {}, "p99 ", h("b", {}, figure(p99.value, "ms"))),
      v.family && h("span", {}, v.family, v.delta_share ? `, ${percent(v.delta_share)} added by updates` : ""), v.bytes ? h("span", {}, size(v.bytes)) : ""),
    details);
}

async function unfold(details, v, d) {
  if (details.querySelector(".inside")) return;
  const chainAt = h("div", {}, h("p", { class: "soft" }, "loading lineage …"));
  details.append(h("div", { class: "inside" },
    v.gates.length ? gateTable(v.gates) : h("p", { class: "soft" }, "This version has no gate results."),
    chainAt,
    h("div", { class: "links" }, Object.entries(v.links).map(([name, url]) => link(name, url)))));
  if (v.version === d.live && d.lineage.length) { chainAt.replaceChildren(chain(d.lineage)); return; }
  try {
    chainAt.replaceChildren(chain((await ask(`lineage/${v.version}`)).lineage));
  } catch (error) {
    chainAt.replaceChildren(h("p", { class: "problem soft" }, error.message));
  }
}

const chain = (steps) => h("ol", { class: "chain" }, steps.map((l) => h("li", {}, h("span", { class: "what" }, l.what), h("span", {}, l.url ? link(l.name, l.url) : h("span", { class: "mono" }, l.name)), l.proof && h("span", { class: "proof" }, l.proof))));

// ---------------------------------------------------------------- acting

function confirm(action, { title, text, yes }, body) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").replaceChildren(...text);
  $("confirm-yes").textContent = yes;
  $("confirm-yes").onclick = async () => {
    $("confirm-yes").disabled = true;
    try {
      const run = await act(action, body);
      state.watched = `${run.dag} ${run.run}`;
      say([`${title.replace("?", "")}: `, link(`${run.dag} is under way`, runUrl(run)), ". This page shows its progress."], "", "action");
    } catch (error) {
      say(error.message, "bad", "action");
    } finally {
      $("confirm-yes").disabled = false;
      dialog.close();
      loop();
    }
  };
  dialog.showModal();
}

// Follows the run started from this page, and reports its outcome.
function watch() {
  if (!state.watched) return;
  const run = state.runs.find((r) => `${r.dag} ${r.run}` === state.watched);
  if (!run || run.state === "queued" || run.state === "running") return;
  state.watched = "";
  const well = run.state === "success";
  say([link(run.dag, runUrl(run)), well ? ` is done. Version ${state.data.live || "none"} is live.` : ` did not succeed. Version ${state.data.live || "none"} is live. ${run.note || "The log of the failed task says why."}`], well ? "good" : "bad", "action");
}

$("confirm-no").onclick = () => $("confirm").close();
$("refresh").onclick = loop;
document.addEventListener("visibilitychange", () => { if (!document.hidden) loop(); });
$("trace").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("traced").replaceChildren(h("p", { class: "soft" }, "searching …"));
  try {
    const { steps } = await ask(`trace?product=${encodeURIComponent($("product").value.trim())}`);
    $("traced").replaceChildren(chain(steps));
  } catch (error) {
    $("traced").replaceChildren(h("p", { class: "problem soft" }, error.message));
  }
});

// ---------------------------------------------------------------- the colours of the page around

function theme() {
  let dark = matchMedia("(prefers-color-scheme: dark)").matches;
  try {
    const outer = window.parent !== window && window.parent.document.documentElement;
    if (outer) {
      dark = outer.classList.contains("dark") || (!outer.classList.contains("light") && dark);
      if (!theme.watching) { theme.watching = new MutationObserver(theme); theme.watching.observe(outer, { attributes: true, attributeFilter: ["class"] }); }
    }
  } catch { /* framed by another site: the system's choice */ }
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
theme();
loop();
