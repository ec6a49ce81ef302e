"use strict";
// The search page: what is asked (a photo, words, both, or a product), and the answer of one version or of two side by side.
const $ = (id) => document.getElementById(id);
const query = { photo: null, text: "", product: "" };
let idleSlot = "";
let asked = 0;

// ---- what is asked -------------------------------------------------------------------------------------------------------------

function filter() {
  const form = new FormData($("filters"));
  const wanted = {}, price = {};
  if (form.get("category")) wanted.category = form.get("category");
  if (form.get("brand")) wanted.brand = form.get("brand");
  if (form.get("min_price")) price.gte = Number(form.get("min_price"));
  if (form.get("max_price")) price.lte = Number(form.get("max_price"));
  if (Object.keys(price).length) wanted.price = price;
  if (form.get("in_stock")) wanted.in_stock = true;
  const count = Object.keys(wanted).length;
  $("active").textContent = count; $("active").hidden = $("reset").hidden = !count;
  return count ? wanted : null;
}

function request() {
  const wanted = filter();
  if (query.photo) {
    const body = new FormData();
    body.set("image", query.photo);
    body.set("explain", "true");
    if (query.text) { body.set("text", query.text); body.set("text_weight", $("weight").value); }
    if (wanted) body.set("filter", JSON.stringify(wanted));
    return { method: "POST", body };
  }
  const body = { explain: true, ...(query.product ? { product_id: query.product } : { text: query.text }) };
  if (wanted) body.filter = wanted;
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

async function answerOf(slot) {
  const sent = request();
  if (slot) sent.headers = { ...sent.headers, Authorization: `Bearer ${$("token").value}` };
  const response = await fetch("/v1/search" + (slot ? `?slot=${slot}` : ""), sent);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail || `The server answered ${response.status}.`);
  return answer;
}

async function ask() {
  if (!query.photo && !query.text && !query.product) return start();
  const number = ++asked; // a late answer to an earlier question is not shown
  say("Searching …");
  $("sides").setAttribute("aria-busy", "true");
  if (!$("results").children.length) $("results").replaceChildren(...Array.from({ length: 8 }, ghost));
  try {
    const slot = $("both").checked ? idleSlot : "";
    const [answer, other] = await Promise.all([answerOf(""), slot ? answerOf(slot) : null]);
    if (number === asked) show(answer, other);
  } catch (error) {
    if (number !== asked) return;
    say(error instanceof TypeError ? "The server does not answer. Is it running?" : sentence(error.message), true);
    $("results").replaceChildren(); $("candidate").replaceChildren(); $("time").hidden = true;
  } finally {
    if (number === asked) $("sides").setAttribute("aria-busy", "false");
  }
}

function start() {
  asked++;
  say("The products that match best will be here.");
  $("results").replaceChildren(); $("candidate").replaceChildren();
  $("time").hidden = $("live-title").hidden = $("other").hidden = true;
  $("sides").classList.remove("two");
  $("sides").setAttribute("aria-busy", "false");
}

// Words and products have an address, so that "back" works; a photo is the reader's own and stays on this page.
function remember() {
  const where = new URLSearchParams();
  if (query.product) where.set("like", query.product);
  else if (query.text && !query.photo) where.set("q", query.text);
  const address = where.size ? `?${where}` : location.pathname;
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
}

function recall() {
  const where = new URLSearchParams(location.search);
  Object.assign(query, { photo: null, text: where.get("q") || "", product: where.get("like") || "" });
  $("text").value = query.text;
  preview(query.product ? `/v1/images/${encodeURIComponent(query.product)}` : "");
  ask();
}

function preview(source) {
  const image = $("preview");
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  if (source) image.src = source; else image.removeAttribute("src");
  image.hidden = $("clear").hidden = !source;
  $("hint").hidden = Boolean(source);
  $("drop").classList.toggle("full", Boolean(source));
  $("mix").hidden = !(query.photo && query.text);
}

function takePhoto(file) {
  if (!file) return;
  if (file.type && !file.type.startsWith("image/")) return say("That is not a picture.", true);
  Object.assign(query, { photo: file, product: "" });
  preview(URL.createObjectURL(file));
  remember();
  ask();
}

function takeProduct(result) {
  Object.assign(query, { photo: null, product: result.product_id, text: "" });
  $("text").value = "";
  preview(result.image_url);
  remember();
  scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  ask();
}

function takeWords(text) {
  Object.assign(query, { text: text.trim(), product: "" });
  preview(query.photo ? $("preview").src && URL.createObjectURL(query.photo) : "");
  remember();
  ask();
}

// ---- the answer ----------------------------------------------------------------------------------------------------------------

function show(answer, other) {
  const n = answer.results.length;
  const from = answer.cached.includes("response") ? ", remembered" : "";
  const whole = answer.coverage.shards_ok === answer.coverage.shards_total ? "" : ` · only ${answer.coverage.shards_ok} of ${answer.coverage.shards_total} shards answered`;
  say(n ? `${n} products in ${answer.timings_ms.total.toFixed(1)} ms, answered by index version ${answer.version.index}${from}${whole}`
        : "No product passes these filters.");
  $("sides").classList.toggle("two", Boolean(other));
  $("other").hidden = $("live-title").hidden = !other;
  $("results").replaceChildren(...answer.results.map((r, place) => card(r, place, null)));
  $("candidate").replaceChildren(...(other ? other.results.map((r, place) => card(r, place, answer)) : []));
  if (other) {
    const both = other.results.filter((r) => answer.results.some((l) => l.product_id === r.product_id)).length;
    $("live-title").textContent = `Live: version ${answer.version.index}, encoder ${answer.version.encoder}`;
    $("candidate-title").textContent = `Candidate: version ${other.version.index}, encoder ${other.version.encoder} · ${both} of ${n} the same`;
    mark(answer, other);
  }
  times(answer.timings_ms);
  suggest("categories", answer.results.flatMap((r) => r.category));
  suggest("brands", answer.results.map((r) => r.brand));
}

// Beside another answer, what only this one shows is marked, and so is how far a product moved.
function mark(answer, other) {
  const places = (a) => new Map(a.results.map((r, place) => [r.product_id, place]));
  const [here, there] = [places(answer), places(other)];
  answer.results.forEach((r, place) => badge($("results").children[place], there.has(r.product_id) ? "" : "gone", "only"));
  other.results.forEach((r, place) => {
    const before = here.get(r.product_id);
    const moved = before === undefined ? "new" : before === place ? "" : before > place ? `↑ ${before - place}` : `↓ ${place - before}`;
    badge($("candidate").children[place], moved, before === undefined ? "only" : "");
  });
}

function badge(item, text, kind) {
  const element = item.querySelector(".badge");
  element.textContent = text; element.hidden = !text;
  if (text && kind) item.querySelector(".card").classList.add(kind);
}

function card(result) {
  const item = $("card").content.firstElementChild.cloneNode(true);
  const part = (name) => item.querySelector(name);
  part(".card").addEventListener("click", () => takeProduct(result));
  part("img").src = result.image_url;
  part("img").addEventListener("error", () => part(".picture").classList.add("none"));
  part(".title").textContent = result.title;
  const money = result.price === null ? "" : `${result.price.toFixed(2)} ${result.currency}`;
  part(".price").textContent = [money, result.brand].filter(Boolean).join(" · ");
  part(".why").textContent = result.in_stock ? why(result) : `out of stock · ${why(result)}`;
  part(".why").classList.toggle("out", !result.in_stock);
  const terms = Object.entries(result.reasons || {}).filter(([, value]) => value !== 0);
  part(".terms dl").append(...terms.flatMap(([name, value]) => row(name.replace("_", " "), value.toFixed(3), value)));
  for (const note of result.notes || []) part(".terms dl").append(...row("rule", note));
  return item;
}

function ghost() {
  const item = document.createElement("li");
  item.className = "ghost";
  return item;
}

function why(result) {
  const terms = result.reasons || {};
  const parts = [`${Math.round(100 * result.similarity)} % alike`];
  if (terms.category > 0.025 && result.category.length) parts.push(`likely ${result.category.at(-1)}`);
  if (terms.colour > 0.015) parts.push("same colours");
  if (terms.affinity > 0) parts.push("what you like");
  if (terms.rules > 0) parts.push("promoted");
  return parts.join(" · ");
}

function row(name, value, width) {
  const term = document.createElement("dt"), detail = document.createElement("dd");
  term.textContent = name; detail.textContent = value;
  if (width !== undefined) detail.style.setProperty("--width", Math.min(1, Math.abs(width)));
  return [term, detail];
}

function times(timings) {
  const phases = Object.entries(timings).filter(([name]) => name !== "total");
  const rest = timings.total - phases.reduce((sum, [, ms]) => sum + ms, 0);
  const parts = [...phases, ["other", Math.max(0, rest)]];
  $("time").hidden = false;
  $("bar").replaceChildren(...parts.map(([name, ms]) => {
    const piece = document.createElement("i");
    piece.className = name; piece.style.flexGrow = ms / timings.total;
    return piece;
  }));
  $("timings").replaceChildren(...[...parts, ["total", timings.total]].map(([name, ms]) => {
    const group = document.createElement("div");
    group.className = name;
    group.append(...row(name, `${ms.toFixed(1)} ms`));
    return group;
  }));
}

function suggest(list, names) {
  const known = new Set([...$(list).children].map((o) => o.value));
  for (const name of new Set(names)) {
    if (!name || known.has(name)) continue;
    const option = document.createElement("option"); option.value = name; $(list).append(option);
  }
}

function say(text, bad = false) { $("message").textContent = text; $("message").classList.toggle("bad", bad); }
function sentence(text) { return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : "."); }

async function showVersion() {
  try {
    const state = await (await fetch("/v1/version")).json();
    $("notice").textContent = state.notice || "";
    $("notice").hidden = !state.notice;
    const live = state.live;
    idleSlot = ["blue", "green"].find((n) => live && n !== live.slot && state.slots[n].state === "ready") || "";
    $("both").disabled = !idleSlot;
    const words = Boolean(live && live.words);
    $("text").disabled = !words;
    $("text").placeholder = words ? "Describe it in words" : "Words: this version's encoder has no text tower";
    $("why-not").textContent = idleSlot ? `Slot ${idleSlot} holds version ${state.slots[idleSlot].version}, ready.` : "The other slot holds no version that is ready.";
    $("version").textContent = live
      ? `index version ${live.version} (${live.slot}) · ${live.products.toLocaleString("en")} products · encoder version ${live.encoder}, ${live.query}`
      : "no index version is live yet";
  } catch { $("version").textContent = "the server does not answer"; }
}

// ---- by hand, by keyboard, by camera -------------------------------------------------------------------------------------------

$("file").addEventListener("change", (e) => { takePhoto(e.target.files[0]); e.target.value = ""; });
$("capture").addEventListener("change", (e) => { takePhoto(e.target.files[0]); e.target.value = ""; });
$("choose").addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); $("file").click(); } });
$("clear").addEventListener("click", () => { Object.assign(query, { photo: null, product: "" }); preview(""); remember(); ask(); $("choose").focus(); });
$("words").addEventListener("submit", (e) => { e.preventDefault(); takeWords($("text").value); });
$("text").addEventListener("search", () => { if (!$("text").value && query.text) takeWords(""); });
$("weight").addEventListener("change", ask);
for (const kind of ["dragover", "dragenter"]) document.addEventListener(kind, (e) => { e.preventDefault(); $("drop").classList.add("over"); });
for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, (e) => { e.preventDefault(); $("drop").classList.remove("over"); });
document.addEventListener("drop", (e) => takePhoto(e.dataTransfer.files[0]));
document.addEventListener("paste", (e) => { if (e.clipboardData.files.length) takePhoto(e.clipboardData.files[0]); });
$("filters").addEventListener("change", ask);
$("filters").addEventListener("reset", () => setTimeout(ask));
$("filters").addEventListener("submit", (e) => e.preventDefault());
$("both").addEventListener("change", ask);
$("token").addEventListener("change", () => { if ($("both").checked) ask(); });
addEventListener("popstate", recall);

document.addEventListener("keydown", (e) => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
  if (e.key === "/" && !typing && !$("text").disabled) { e.preventDefault(); $("text").focus(); return; }
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: "row", ArrowUp: "-row" }[e.key];
  const here = document.activeElement.closest(".results li");
  if (!step || !here || typing) return;
  const items = [...here.parentElement.children];
  const across = items.filter((i) => i.offsetTop === items[0].offsetTop).length;
  const next = items[items.indexOf(here) + (step === "row" ? across : step === "-row" ? -across : step)];
  if (next) { e.preventDefault(); next.querySelector(".card").focus(); }
});

const phone = matchMedia("(pointer: coarse)").matches;
let stream = null;
$("camera").addEventListener("click", async () => {
  if (phone || !navigator.mediaDevices?.getUserMedia) return $("capture").click(); // a phone's own camera app is the better one
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
  } catch { return say("There is no camera, or it may not be used here.", true); }
  $("video").srcObject = stream;
  $("viewfinder").showModal();
});
$("shoot").addEventListener("click", () => {
  const video = $("video"), canvas = document.createElement("canvas");
  Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => { $("viewfinder").close(); if (blob) takePhoto(new File([blob], "camera.jpg", { type: "image/jpeg" })); }, "image/jpeg", 0.9);
});
$("leave").addEventListener("click", () => $("viewfinder").close());
$("viewfinder").addEventListener("close", () => { stream?.getTracks().forEach((t) => t.stop()); stream = null; });

if (matchMedia("(max-width: 46rem)").matches) $("narrow").open = false;
showVersion();
setInterval(showVersion, 10000);
if (location.search) recall();
