"use strict";
const $ = (id) => document.getElementById(id);
let lastQuery = null; // a File, or the id of a product

async function showVersion() {
  try {
    const state = await (await fetch("/v1/version")).json();
    $("notice").textContent = state.notice || "";
    $("notice").hidden = !state.notice;
    const live = state.live;
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
  if (form.get("max_price")) wanted.max_price = Number(form.get("max_price"));
  if (form.get("in_stock")) wanted.in_stock = true;
  return Object.keys(wanted).length ? wanted : null;
}

async function ask(query) {
  lastQuery = query;
  say("Searching …");
  const wanted = filter();
  let request;
  if (query instanceof File) {
    const body = new FormData();
    body.set("image", query);
    body.set("explain", "true");
    if (wanted) body.set("filter", JSON.stringify(wanted));
    request = { method: "POST", body };
  } else {
    const body = { product_id: query, explain: true };
    if (wanted) body.filter = wanted;
    request = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  }
  try {
    const response = await fetch("/v1/search", request);
    const answer = await response.json();
    if (!response.ok) { say(answer.detail || `The server answered ${response.status}.`, true); $("results").replaceChildren(); return; }
    show(answer);
  } catch { say("The server does not answer. Is it running?", true); }
}

function show(answer) {
  const n = answer.results.length;
  say(n ? `${n} products, answered by index version ${answer.version.index} in ${answer.timings_ms.total.toFixed(1)} ms`
        : "No product passes these filters.");
  $("results").replaceChildren(...answer.results.map(card));
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
  if (result.reasons && result.reasons.category > 0.01) parts.push(`likely ${result.category.at(-1)}`);
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
document.addEventListener("paste", (e) => take([...e.clipboardData.files][0]));
$("filters").addEventListener("change", () => { if (lastQuery) ask(lastQuery); });
$("filters").addEventListener("submit", (e) => e.preventDefault());
showVersion();
setInterval(showVersion, 10000);
