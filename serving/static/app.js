"use strict";
// The search page: what is asked (a photo, words, both, or a product), and the answer of one version or of two side by side.
const $ = (id) => document.getElementById(id);
const nothing = { photo: 0, box: null, text: "", product: "", slot: "" };
const query = { ...nothing }; // the photo's number in `photos`, the box in it, and the slot whose product it is
const photos = new Map();
let remembered = JSON.stringify(query);
let idleSlot = "";
const frame = new Frame({
  stage: $("stage"), box: $("box"), image: $("preview"), button: $("mark"), note: $("box-keys"),
  changed: (box) => { query.box = box; remember(); ask(); },
  tapped: () => $("file").click(),
});
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
    body.set("image", photos.get(query.photo));
    body.set("explain", "true");
    if (query.box) body.set("box", JSON.stringify(query.box));
    if (query.text) { body.set("text", query.text); body.set("text_weight", $("weight").value); }
    if (wanted) body.set("filter", JSON.stringify(wanted));
    return { method: "POST", body };
  }
  const body = { explain: true, ...(query.product ? { product_id: query.product } : { text: query.text }) };
  if (wanted) body.filter = wanted;
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

// With the API key where there is one; a slot also wants the admin token.
async function send(path, slot, options = {}) {
  const headers = new Headers(options.headers);
  if ($("key").value) headers.set("X-Api-Key", $("key").value);
  if (slot) headers.set("Authorization", `Bearer ${$("token").value}`);
  try {
    return await fetch(slot ? `${path}${path.includes("?") ? "&" : "?"}slot=${slot}` : path, { ...options, headers });
  } catch { throw new Error("the server does not answer. Is it running?"); }
}

async function answerOf(slot) {
  const response = await send("/v1/search", slot, request());
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  throw Object.assign(new Error(answer.detail || `the server answered ${response.status}`), { reason: answer.reason });
}

async function ask() {
  if (!query.photo && !query.text && !query.product) return start();
  const number = ++asked; // a late answer to an earlier question is not shown
  say("Searching …");
  $("sides").setAttribute("aria-busy", "true");
  if (!$("results").children.length) $("results").replaceChildren(...Array.from({ length: 8 }, ghost));
  const slot = $("both").checked ? idleSlot : "";
  const [live, other] = await Promise.allSettled((slot ? ["", slot] : [""]).map(answerOf));
  if (number !== asked) return;
  show(live, other, slot);
  $("sides").setAttribute("aria-busy", "false");
}

function start() {
  asked++;
  say("The products that match best will be here.");
  $("results").replaceChildren(); $("candidate").replaceChildren();
  $("time").hidden = $("admit").hidden = true;
  beside(false);
  $("sides").setAttribute("aria-busy", "false");
}

// Words and products have an address; a photo is the reader's own and stays on this page, where "back" finds it again.
function remember() {
  if (JSON.stringify(query) === remembered) return;
  const where = new URLSearchParams();
  if (query.product) where.set("like", query.product);
  else if (query.text && !query.photo) where.set("q", query.text);
  history.pushState({ ...query }, "", where.size ? `?${where}` : location.pathname);
  remembered = JSON.stringify(query);
}

function recall() {
  const where = new URLSearchParams(location.search);
  Object.assign(query, nothing, history.state || { text: where.get("q") || "", product: where.get("like") || "" });
  if (!photos.has(query.photo)) Object.assign(query, { photo: 0, box: null }); // the page was loaded anew since
  remembered = JSON.stringify(query);
  $("text").value = query.text;
  preview();
  ask();
}

function preview() {
  const photo = photos.get(query.photo);
  const source = photo ? URL.createObjectURL(photo) : query.product ? `/v1/images/${encodeURIComponent(query.product)}` : "";
  draw($("preview"), source, query.slot);
  frame.show(Boolean(photo), query.box);
  $("preview").hidden = $("clear").hidden = !source;
  $("hint").hidden = Boolean(source);
  $("choose").ariaLabel = source ? "What you asked with: choose another photo" : null;
  $("drop").classList.toggle("full", Boolean(source));
  $("mix").hidden = !(photo && query.text);
}

// Shows a picture. A slot's own come with headers, which an <img> cannot send.
async function draw(image, source, slot) {
  const wanted = (image.dataset.wanted = `${slot} ${source}`);
  if (slot) {
    image.loading = "eager"; // so that what was fetched is read, and let go, at once
    const picture = await send(source, slot).then((response) => response.ok && response.blob()).catch(() => null);
    source = picture ? URL.createObjectURL(picture) : "";
  }
  if (image.dataset.wanted === wanted) {
    if (source) image.src = source; else image.removeAttribute("src");
    image.parentElement.classList.toggle("none", Boolean(slot) && !source);
    if (source.startsWith("blob:")) await image.decode().catch(() => null);
  }
  URL.revokeObjectURL(source);
}

function takePhoto(file) {
  if (!file) return;
  if (file.type && !file.type.startsWith("image/")) return say("That is not a picture.", true);
  const number = Date.now();
  photos.set(number, file);
  take({ photo: number, text: query.text });
}

function takeProduct(result, slot) {
  scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  $("text").value = "";
  take({ product: result.product_id, slot });
}

function take(wanted) {
  Object.assign(query, nothing, wanted);
  preview();
  remember();
  ask();
}

// ---- the answer ----------------------------------------------------------------------------------------------------------------

// Each side answers for itself: `live` and `other` are as Promise.allSettled gives them, `other` only where a slot is asked too.
function show(live, other, slot) {
  const held = [$("sides"), $("admit")].some((part) => part.contains(document.activeElement));
  beside(Boolean(other));
  fill($("results"), "Live", live, "");
  if (other) fill($("candidate"), `Slot ${slot}`, other, slot);
  if (other) say(`Live: ${brief(live)} · slot ${slot}: ${brief(other)}`);
  else if (live.value?.results.length) say(`${brief(live)}, answered by index version ${live.value.version.index}`);
  else say(none(live), Boolean(live.reason));
  if (live.value && other?.value) mark(live.value, other.value);
  $("time").hidden = !live.value;
  $("whose").textContent = other ? ": live" : "";
  if (live.value) times(live.value.timings_ms);
  const shown = [live, other].flatMap((side) => side?.value?.results || []);
  suggest("categories", shown.flatMap((r) => r.category));
  suggest("brands", shown.map((r) => r.brand));
  const first = $("sides").querySelector(".card");
  if (held && first) first.focus({ preventScroll: true }); // what had the focus is gone
  admit([live, other].some((side) => side?.reason?.reason === "api_key"));
}

function beside(two) {
  $("sides").classList.toggle("two", two);
  $("other").hidden = !two;
  for (const part of document.querySelectorAll(".sides h2, .sides .message")) part.hidden = !two;
  if (!two) $("candidate").replaceChildren();
}

function fill(list, name, side, slot) {
  const [title, message] = list.parentElement.querySelectorAll("h2, .message");
  title.textContent = side.value ? `${name}: version ${side.value.version.index}, encoder ${side.value.version.encoder}` : name;
  message.textContent = none(side);
  message.classList.toggle("bad", Boolean(side.reason));
  list.replaceChildren(...(side.value ? side.value.results.map((result) => card(result, slot)) : []));
}

function brief({ value: answer }) {
  if (!answer) return "no answer";
  const { shards_ok, shards_total } = answer.coverage, n = answer.results.length;
  const whole = shards_ok === shards_total ? "" : `, only ${shards_ok} of ${shards_total} shards`;
  return `${n} product${n === 1 ? "" : "s"} in ${answer.timings_ms.total.toFixed(1)} ms${answer.cached.includes("response") ? ", remembered" : ""}${whole}`;
}

// Why a side shows no product; "" where it shows some.
function none({ value: answer, reason: error }) {
  if (answer) return answer.results.length ? "" : $("active").hidden ? "There is no such product." : "No product passes these filters.";
  if (error.reason === "api_key") return $("key").value ? "This replica does not know that API key." : "This replica asks for an API key.";
  if (error.reason === "unauthorized") return $("token").value ? "That is not the admin token." : "This needs the admin token: give it under Compare.";
  return sentence(error.message);
}

function admit(asked) {
  const already = !$("admit").hidden;
  $("admit").hidden = !asked;
  if (asked && !already) $("key").focus();
}

// Beside another answer, what only this one shows is marked, and so is how far a product moved.
function mark(answer, other) {
  const both = other.results.filter((r) => answer.results.some((l) => l.product_id === r.product_id)).length;
  $("candidate-title").append(` · ${both} of ${answer.results.length} the same`);
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

function card(result, slot) {
  const item = $("card").content.firstElementChild.cloneNode(true);
  const part = (name) => item.querySelector(name);
  part(".card").addEventListener("click", () => takeProduct(result, slot));
  part("img").addEventListener("error", () => part(".picture").classList.add("none"));
  const source = result.matched_image || result.image_url;
  if (source) draw(part("img"), source, slot); else part(".picture").classList.add("none"); // found by its title
  part(".title").textContent = result.title;
  const money = result.price === null ? "" : `${result.price.toFixed(2)} ${result.currency}`;
  part(".price").textContent = [money, result.brand].filter(Boolean).join(" · ");
  part(".why").textContent = result.in_stock ? why(result) : `out of stock · ${why(result)}`;
  part(".why").title = "match" in result ? "The score as a share of what a product's own picture would score. “Why here” shows its parts."
                                         : "What orders the products: similarity, and what the ranker adds.";
  part(".why").classList.toggle("out", !result.in_stock);
  const terms = Object.entries(result.reasons || {}).filter(([, value]) => value !== 0);
  part(".terms dl").append(...terms.flatMap(([name, value]) => row(name.replace("_", " "), value.toFixed(3), value)));
  part(".terms dl").append(...row("= score", result.score.toFixed(3)));
  return item;
}

function ghost() {
  const item = document.createElement("li");
  item.className = "ghost";
  return item;
}

// The number follows the order: both are the score's. What a rule did to the order stands beside it.
function why(result) {
  const terms = result.reasons || {};
  const parts = ["match" in result ? `${Math.round(100 * result.match)}\u00a0% match` : `score ${result.score.toFixed(2)}`];
  if (terms.same_picture > 0) parts.push("the same picture");
  if (terms.category > 0.025 && result.category.length) parts.push(`likely ${result.category.at(-1)}`);
  if (terms.colour > 0.015) parts.push("same colours");
  if (terms.affinity > 0) parts.push("what you like");
  if (terms.rules > 0) parts.push("promoted");
  parts.push(...(result.notes || []));
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

// Said only where it is not shoppers' photos alone.
function measuredOn(queries) {
  if (!queries?.synthetic) return "";
  const photos = queries.photos ? `${queries.photos} photos and ` : "";
  return ` · recall measured on ${photos}${queries.synthetic} synthetic queries`;
}

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
      ? `index version ${live.version} (${live.slot}) · ${live.products.toLocaleString("en")} products · encoder version ${live.encoder}, ${live.query}${measuredOn(live.queries)}`
      : "no index version is live yet";
  } catch { $("version").textContent = "the server does not answer"; }
}

// ---- by hand, by keyboard, by camera -------------------------------------------------------------------------------------------

$("file").addEventListener("change", (e) => { takePhoto(e.target.files[0]); e.target.value = ""; });
$("capture").addEventListener("change", (e) => { takePhoto(e.target.files[0]); e.target.value = ""; });
$("preview").addEventListener("error", () => $("choose").classList.add("none"));
$("choose").addEventListener("click", () => $("file").click());
$("clear").addEventListener("click", () => { take({ text: query.text }); $("choose").focus(); });
$("words").addEventListener("submit", (e) => { e.preventDefault(); take({ photo: query.photo, box: query.box, text: $("text").value.trim() }); });
$("text").addEventListener("search", () => { if (!$("text").value && query.text) take({ photo: query.photo, box: query.box }); });
$("skip").addEventListener("click", (e) => { e.preventDefault(); $("results").focus(); }); // not an address of its own, to which "back" would lead
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

// The API key stays in this tab; where a browser keeps nothing, on this page.
try { $("key").value = sessionStorage.getItem("api_key") || ""; } catch { /* it is asked for again */ }
$("admit").addEventListener("submit", (e) => {
  e.preventDefault();
  try { sessionStorage.setItem("api_key", $("key").value); } catch { /* as above */ }
  ask();
});

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
recall();
