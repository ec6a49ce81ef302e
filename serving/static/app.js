"use strict";
const $ = (id) => document.getElementById(id);
let lastQuery = null; // a File, or the id of a product
let asked = 0;
let idleSlot = "";

async function showVersion() {
  try {
    const state = await (await fetch("/v1/version")).json();
    $("notice").textContent = state.notice || "";
    $("notice").hidden = !state.notice;
    const live = state.live;
    idleSlot = ["blue", "green"].find((n) => live && n !== live.slot && state.slots[n].state === "ready") || "";
    $("both").disabled = !idleSlot;
    $("version").textContent = live
      ? `index version ${live.version} (${live.slot}) · ${live.products.toLocaleString("en")} products · encoder version ${live.encoder}, ${live.query}`
      : "no index version is live yet";
  } catch { $("version").textContent = "the server does not answer"; }
}

function filter() {
  const form = new FormData($("filters"));
  const wanted = {};
  if (form.get("category")) wanted.category = [form.get("category")];
  if (form.get("brand")) wanted.brand = [form.get("brand")];
  if (form.get("max_price")) wanted.price = { lte: Number(form.get("max_price")) };
  if (form.get("in_stock")) wanted.in_stock = true;
  return Object.keys(wanted).length ? wanted : null;
}

function requestFor(query) {
  const wanted = filter();
  if (query instanceof File) {
    const body = new FormData();
    body.set("image", query);
    body.set("explain", "true");
    if (wanted) body.set("filter", JSON.stringify(wanted));
    return { method: "POST", body };
  }
  const body = { product_id: query, explain: true };
  if (wanted) body.filter = wanted;
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

async function answerOf(query, slot) {
  const request = requestFor(query);
  if (slot) request.headers = { ...request.headers, Authorization: `Bearer ${$("token").value}` };
  const response = await fetch("/v1/search" + (slot ? `?slot=${slot}` : ""), request);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail || `The server answered ${response.status}.`);
  return answer;
}

async function ask(query) {
  lastQuery = query;
  const number = ++asked; // a late answer to an earlier question is not shown
  say("Searching …");
  try {
    const slot = $("both").checked ? idleSlot : "";
    const [answer, other] = await Promise.all([answerOf(query, ""), slot ? answerOf(query, slot) : null]);
    if (number === asked) show(answer, other);
  } catch (error) {
    if (number !== asked) return;
    say(error instanceof TypeError ? "The server does not answer. Is it running?" : error.message, true);
    $("results").replaceChildren(); $("candidate").replaceChildren();
  }
}

function show(answer, other) {
  const n = answer.results.length;
  const from = answer.cached.includes("response") ? ", remembered" : "";
  say(n ? `${n} products, answered by index version ${answer.version.index} in ${answer.timings_ms.total.toFixed(1)} ms${from}`
        : "No product passes these filters.");
  $("sides").classList.toggle("two", Boolean(other));
  $("other").hidden = $("live-title").hidden = !other;
  $("results").replaceChildren(...cards(answer, other));
  $("candidate").replaceChildren(...(other ? cards(other, answer) : []));
  if (other) {
    $("live-title").textContent = `Live: version ${answer.version.index}, encoder ${answer.version.encoder}`;
    $("candidate-title").textContent = `Candidate: version ${other.version.index}, encoder ${other.version.encoder}`;
  }
  $("timings").replaceChildren(...Object.entries(answer.timings_ms).map(([phase, ms]) => {
    const row = document.createElement("div");
    const name = document.createElement("dt"); name.textContent = phase;
    const value = document.createElement("dd"); value.textContent = `${ms.toFixed(1)} ms`;
    row.append(name, value);
    return row;
  }));
  suggest("categories", answer.results.flatMap((r) => r.category));
  suggest("brands", answer.results.map((r) => r.brand));
}

// Beside another answer, what only this one shows is marked.
function cards(answer, other) {
  const shared = other && new Set(other.results.map((r) => r.product_id));
  return answer.results.map((result) => {
    const item = card(result);
    if (shared && !shared.has(result.product_id)) item.firstChild.classList.add("only");
    return item;
  });
}

function card(result) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.className = "card"; button.type = "button";
  button.title = "Show products that look like this one";
  button.addEventListener("click", () => { preview(result.image_url); ask(result.product_id); });
  const image = document.createElement("img");
  image.src = result.image_url; image.alt = ""; image.loading = "lazy";
  const text = document.createElement("div"); text.className = "text";
  text.append(
    line("title", result.title),
    line("price", result.price === null ? result.brand : `${result.price.toFixed(2)} ${result.currency}  ${result.brand ? "· " + result.brand : ""}`),
    line("why" + (result.in_stock ? "" : " out"), result.in_stock ? why(result) : "out of stock"),
  );
  const bar = document.createElement("div"); bar.className = "bar";
  const fill = document.createElement("i"); fill.style.width = `${Math.max(0, Math.min(1, result.similarity)) * 100}%`;
  bar.append(fill); text.append(bar);
  button.append(image, text); item.append(button);
  return item;
}

function why(result) {
  const parts = [`looks ${(100 * result.similarity).toFixed(0)} % alike`];
  if (result.reasons && result.reasons.category > 0.025) parts.push(`likely ${result.category.at(-1)}`);
  if (result.reasons && result.reasons.affinity > 0) parts.push("what you like");
  return parts.join(" · ");
}

function line(kind, text) {
  const element = document.createElement("div");
  element.className = kind; element.textContent = text;
  return element;
}

function suggest(list, names) {
  const known = new Set([...$(list).children].map((o) => o.value));
  for (const name of new Set(names)) {
    if (!name || known.has(name)) continue;
    const option = document.createElement("option"); option.value = name; $(list).append(option);
  }
}

function say(text, bad = false) { $("message").textContent = text; $("message").classList.toggle("bad", bad); }
function preview(source) { $("preview").src = source; $("preview").hidden = false; $("hint").hidden = true; }
function take(file) {
  if (!file || !file.type.startsWith("image/")) { say("That is not a picture.", true); return; }
  preview(URL.createObjectURL(file));
  ask(file);
}

$("file").addEventListener("change", (e) => take(e.target.files[0]));
$("drop").addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); $("file").click(); } });
for (const kind of ["dragover", "dragenter"]) document.addEventListener(kind, (e) => { e.preventDefault(); $("drop").classList.add("over"); });
for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, (e) => { e.preventDefault(); $("drop").classList.remove("over"); });
document.addEventListener("drop", (e) => take(e.dataTransfer.files[0]));
document.addEventListener("paste", (e) => { if (e.clipboardData.files.length) take(e.clipboardData.files[0]); });
$("filters").addEventListener("change", () => { if (lastQuery) ask(lastQuery); });
$("both").addEventListener("change", () => { if (lastQuery) ask(lastQuery); });
$("token").addEventListener("change", () => { if (lastQuery && $("both").checked) ask(lastQuery); });
$("filters").addEventListener("submit", (e) => e.preventDefault());
showVersion();
setInterval(showVersion, 10000);
