"use strict";
// Talks to the same API as every other program; nothing here knows more than /openapi.json says.
const $ = (id) => document.getElementById(id);
const SETTINGS = ["n", "tries", "guidance", "top_p", "temperature", "strength"];
const HISTORY = 60; // drawings that this browser keeps
const HERE = location.origin + location.pathname.replace(/\/?$/, "/"); // perhaps below a path of a proxy

let model = null;      // what /v1/models says
let tiles = null;      // each code as a tile, once it has come
let running = null;    // the request under way
let drawing = null;    // what is on the stage: { prompt, seed, pictures, ... }
let source = null;     // the picture to begin with: { bitmap, blob, painted, mode }
let cursor = 0;        // the cell that the keyboard is at

// ---- the server ----

function headers(extra = {}) {
  const key = localStorage.getItem("tessera-key");
  return key ? { ...extra, Authorization: `Bearer ${key}` } : extra;
}

async function call(path, options = {}) {
  for (;;) {
    const response = await fetch(HERE + path, { ...options, headers: headers(options.headers) });
    if (response.ok) return response;
    if (response.status === 401 && await askForKey()) continue;
    const told = await response.json().catch(() => null);
    throw new Error(told?.error?.message ?? `The server answered ${response.status}.`);
  }
}

function askForKey() {
  return new Promise((resolve) => {
    $("key").value = "";
    $("key-dialog").showModal();
    $("key-dialog").addEventListener("close", () => {
      localStorage.setItem("tessera-key", $("key").value);
      resolve($("key").value !== "");
    }, { once: true });
  });
}

// Server-sent events of a response, one after the other.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const frames = text.split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      const data = frame.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

async function meetModel() {
  model = (await (await call("v1/models")).json()).data[0].tessera;
  const side = `${model.side}×${model.side} pixels of ${model.grid}×${model.grid} tokens`;
  $("model").replaceChildren(bold(model.name), ` ${model.fingerprint}`, document.createElement("br"), side);
  $("about").textContent = `${model.about} It draws ${side}, and reads the first ${model.prompt_tokens} tokens of a prompt.`.trim();
  $("tries-label").classList.toggle("hidden", !model.ranks);
  for (const id of ["guidance-label", "negative-label"]) $(id).classList.toggle("hidden", model.guidance === 1);
  for (const example of model.examples) {
    const chip = Object.assign(document.createElement("button"), { type: "button", className: "chip", textContent: example });
    chip.onclick = () => { $("prompt").value = example; draw(); };
    $("examples").append(chip);
  }
}

async function fetchTiles() {
  const blob = await (await call(`v1/models/${model.id}/codes.png`)).blob();
  tiles = await createImageBitmap(blob);
  // What was laid without them is laid again.
  document.querySelectorAll(".forming canvas").forEach((canvas, picture) =>
    drawing.tokens[picture]?.forEach((code, position) => layTile(canvas, position, code)));
}

// ---- drawing ----

function settings() {
  const number = (id) => Number($(id).value);
  return { n: number("n"), tries: model?.ranks ? number("tries") : 1, guidance: model?.guidance === 1 ? 1 : number("guidance"), top_p: number("top_p"),
    temperature: number("temperature"), negative: model?.guidance === 1 ? "" : $("negative").value.trim(), seed: $("seed").value === "" ? null : number("seed") };
}

function parameters(prompt, chosen) {
  const { n, tries, guidance, top_p, temperature, negative, seed } = chosen;
  const wanted = { prompt, n, guidance, top_p, temperature, stream: true, stream_tokens: true };
  if (tries > 1 && prompt.trim() !== "") wanted.best_of = n * tries;
  if (negative) wanted.negative_prompt = negative;
  if (seed !== null) wanted.seed = seed;
  return wanted;
}

// Draws what the form says. `meant` is the picture that a link is about.
async function draw(meant = null) {
  running?.abort();
  const stop = running = new AbortController();
  const prompt = $("prompt").value.trim(), chosen = settings();
  const from = source && { ...source, painted: [...source.painted] };
  if (prompt === "" && from === null) { $("prompt").focus(); return tell("Say what to draw first.", true); }
  if (from?.mode === "paint" && !from.painted.includes(true)) return tell("Paint over what shall be drawn anew first.", true);
  drawing = { prompt, chosen, pictures: [], tokens: [], from: from !== null, meant };
  busy(true);
  tell("Waiting…");
  lookAtPictures();
  try {
    const response = await call(...await request(prompt, chosen, from, stop.signal));
    for await (const event of events(response)) {
      if (stop !== running) return;
      if (event.error) throw new Error(event.error.message);
      take(event);
    }
    if (drawing.pictures.length < chosen.n) throw new Error("The server hung up before the drawing was finished.");
    await settle();
  } catch (error) {
    if (stop !== running) return; // another drawing has taken its place
    if (error.name !== "AbortError") tell(error.message, true);
    else tell("Stopped.");
  } finally {
    if (stop === running) { running = null; busy(false); }
  }
}

// On a phone they are below the form, perhaps under a keyboard.
function lookAtPictures() {
  const stage = document.querySelector(".stage");
  if (stage.getBoundingClientRect().top < innerHeight / 2) return;
  if (matchMedia("(pointer: coarse)").matches) document.activeElement.blur();
  stage.scrollIntoView();
}

async function request(prompt, chosen, from, signal) {
  const wanted = parameters(prompt, chosen);
  if (from === null) {
    const body = JSON.stringify(wanted);
    return ["v1/images/generations", { method: "POST", headers: { "Content-Type": "application/json" }, body, signal }];
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(wanted)) form.append(name, value);
  form.append("image", from.blob, "picture.png");
  if (from.mode === "vary") form.append("strength", $("strength").value);
  else form.append("mask", await maskOf(from), "mask.png");
  return [from.mode === "vary" ? "v1/images/variations" : "v1/images/edits", { method: "POST", body: form, signal }];
}

function take(event) {
  if (event.type === "tessera.started") begin(event);
  else if (event.type === "tessera.tokens") lay(event);
  else if (event.type.endsWith(".completed")) drawing.pictures.push(event);
}

// As many empty mosaics as are drawn.
function begin({ drawn, seed, revised_prompt, given, strength, unknown_words }) {
  Object.assign(drawing, { seed, read: revised_prompt, unknown: unknownWords(unknown_words ?? []) });
  $("empty").classList.add("hidden");
  $("pictures").className = "pictures forming";
  $("pictures").replaceChildren(...Array.from({ length: drawn }, () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: model.side, height: model.side, ariaHidden: "true" });
    const cell = document.createElement("div");
    cell.className = "picture";
    cell.append(canvas);
    if (strength === 0) given.forEach((code, position) => code !== null && layTile(canvas, position, code));
    return cell;
  }));
  tell((drawing.chosen.tries > 1 && drawn > drawing.chosen.n
    ? `Drawing ${drawn} to choose the best ${drawing.chosen.n}…` : `Drawing ${drawn === 1 ? "a picture" : `${drawn} pictures`}…`) + drawing.unknown);
}

// A sentence that names them, or nothing.
function unknownWords(words) {
  const named = words.map(({ word, suggestion }) => `“${word}”${suggestion === null ? "" : ` (did you mean “${suggestion}”?)`}`);
  return named.length === 0 ? "" : ` Unknown word${named.length === 1 ? "" : "s"}: ${named.join(", ")}.`;
}

function lay({ done, total, new: tokens }) {
  $("progress").value = done / total;
  for (const [picture, position, code] of tokens) {
    (drawing.tokens[picture] ??= []).push(code);
    const canvas = $("pictures").children[picture]?.firstChild;
    if (canvas) layTile(canvas, position, code);
  }
}

function layTile(canvas, position, code) {
  const cell = model.side / model.grid, x = position % model.grid * cell, y = Math.floor(position / model.grid) * cell;
  const context = canvas.getContext("2d");
  if (!tiles) { // not yet here: a colour of its own for each code
    context.fillStyle = `hsl(${code * 137 % 360} 45% 65%)`;
    context.fillRect(x, y, cell, cell);
    return;
  }
  const columns = tiles.width / cell;
  context.drawImage(tiles, code % columns * cell, Math.floor(code / columns) * cell, cell, cell, x, y, cell, cell);
}

async function settle() {
  const n = drawing.pictures.length;
  show(drawing);
  const ranked = drawing.pictures.some((picture) => picture.score !== null) && n > 1 ? ", the best first" : "";
  const read = drawing.read !== undefined && drawing.prompt.length > 120 && drawing.read.length < drawing.prompt.length * .8
    ? ` The model read only up to “…${drawing.read.slice(-30)}”.` : "";
  const differing = new Set(drawing.pictures.map((picture) => drawing.tokens[picture.index].join())).size;
  const alike = differing < n
    ? ` ${differing === 1 ? "They are all the same" : `Only ${differing} of them differ`}: raise top-p or temperature for others.` : "";
  tell(`${n === 1 ? "One picture" : `${n} pictures`}${ranked}. Seed ${drawing.seed}.${read}${drawing.unknown}${alike}`);
  await remember(drawing);
}

// The finished pictures.
function show(past) {
  $("empty").classList.add("hidden");
  $("pictures").className = "pictures";
  $("pictures").style.setProperty("--cell", past.pictures.length <= 2 ? "19rem" : past.pictures.length <= 4 ? "14rem" : "9.5rem");
  $("pictures").replaceChildren(...past.pictures.map((picture, at) => {
    const card = Object.assign(document.createElement("button"), { type: "button", className: "picture" });
    card.style.setProperty("--at", at);
    card.classList.toggle("meant", past.meant !== null && past.meant === picture.index);
    const image = Object.assign(new Image(), { src: url(picture), alt: `${past.prompt || "a picture"}, number ${at + 1}` });
    card.append(image);
    if (picture.score !== null) {
      const score = Object.assign(document.createElement("span"), { className: "score" });
      score.append(Object.assign(document.createElement("span"), { textContent: `${at + 1}.` }),
        Object.assign(document.createElement("span"), { textContent: picture.score.toFixed(3), title: "how well it fits the words: a cosine" }));
      card.append(score);
    }
    card.onclick = () => open(past, picture);
    return card;
  }));
}

const url = (picture) => `data:image/png;base64,${picture.b64_json}`;
function bytesOf(picture) {
  return new Blob([Uint8Array.from(atob(picture.b64_json), (sign) => sign.charCodeAt(0))], { type: "image/png" });
}

function tell(text, wrong = false) {
  $("status").textContent = text;
  $("status").className = wrong ? "error" : "";
}

function busy(now) {
  $("stop").classList.toggle("hidden", !now);
  $("progress").classList.toggle("hidden", !now);
  $("progress").value = 0;
}

const bold = (text) => Object.assign(document.createElement("b"), { textContent: text });

// ---- one picture ----

function open(past, picture) {
  const { chosen } = past, name = past.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "picture";
  $("sheet-image").src = url(picture);
  $("sheet-image").alt = past.prompt;
  $("sheet-title").textContent = past.prompt || "Without words";
  const facts = { Seed: past.seed, Number: picture.index, Fit: picture.score?.toFixed(3), Guidance: chosen.guidance, "Top-p": chosen.top_p,
    Temperature: chosen.temperature, "Not this": chosen.negative, Model: `${model.name} ${past.model ?? model.fingerprint}` };
  $("sheet-facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value !== undefined && value !== "").flatMap(([name, value]) =>
    [Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: value })]));
  Object.assign($("sheet-download"), { href: url(picture), download: `tessera-${name}-${past.seed}-${picture.index}.png` });
  $("sheet-link").disabled = past.from;
  $("sheet-hint").textContent = past.from ? "A picture that began with another cannot be shared as a link; its file can." : "";
  const begin = (mode, painted) => async () => { $("sheet").close(); $("prompt").value = past.prompt; await beginWith(bytesOf(picture), mode, painted); };
  $("sheet-vary").onclick = async () => { await begin("vary", "none")(); draw(); };
  $("sheet-finish").onclick = begin("paint", "bottom");
  $("sheet-paint").onclick = begin("paint", "none");
  $("sheet-link").onclick = () => copy(link(past, picture));
  $("sheet").showModal();
}

function link(past, picture) {
  const { n, tries, guidance, top_p, temperature, negative } = past.chosen;
  const all = { p: past.prompt, seed: past.seed, i: picture.index, n, tries, guidance, top_p, temperature, not: negative, model: past.model ?? model.fingerprint };
  const said = Object.entries(all).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return `${location.origin}${location.pathname}#${new URLSearchParams(said)}`;
}

async function copy(text) {
  location.hash = new URL(text).hash; // so that it can be copied from there, too
  const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  $("sheet-hint").textContent = copied ? "Copied. It draws the same picture wherever this model runs." : "The link is in the address bar.";
}

// What a link says, if this page was opened by one.
function follow() {
  const said = new URLSearchParams(location.hash.slice(1));
  if (!said.has("p")) return false;
  for (const [name, id] of [["p", "prompt"], ["seed", "seed"], ["not", "negative"], ...SETTINGS.map((id) => [id, id])])
    if (said.has(name)) $(id).value = said.get(name);
  label();
  const other = said.get("model");
  if (other && other !== model.fingerprint) tell(`That picture was drawn by another model (${other}): this one draws another from the same seed.`, true);
  else draw(said.has("i") ? Number(said.get("i")) : null);
  return true;
}

// ---- a picture to begin with ----

async function beginWith(blob, mode = "paint", painted = "bottom") {
  try {
    let bitmap = await createImageBitmap(blob);
    if (bitmap.width !== bitmap.height) { // the middle square, as the server would take it
      const side = Math.min(bitmap.width, bitmap.height), to = Math.min(side, 768);
      const square = new OffscreenCanvas(to, to);
      square.getContext("2d").drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, to, to);
      blob = await square.convertToBlob();
      bitmap = await createImageBitmap(blob);
      tell("Only the middle square of the picture is used.");
    }
    source = { bitmap, blob, painted: Array(model.grid ** 2).fill(false), mode };
  } catch {
    return tell("That file is no picture that this browser can read.", true);
  }
  paint(painted);
  setMode(mode);
  $("no-source").classList.add("hidden");
  $("with-source").classList.remove("hidden");
  $("source").scrollIntoView({ block: "nearest" });
  if (mode === "paint") $("mask").focus({ preventScroll: true });
}

function setMode(mode) {
  source.mode = mode;
  for (const name of ["paint", "vary"]) {
    $(`mode-${name}`).setAttribute("aria-pressed", mode === name);
    $(`${name}-tools`).classList.toggle("hidden", mode !== name);
  }
  paintCells();
}

function paint(what) {
  const half = Math.floor(model.grid / 2);
  source.painted = source.painted.map((painted, at) => {
    const x = at % model.grid, y = Math.floor(at / model.grid);
    return { bottom: y >= half, right: x >= half, invert: !painted, none: false }[what];
  });
  paintCells();
}

function paintCells() {
  const canvas = $("mask"), context = canvas.getContext("2d"), cell = canvas.width / model.grid;
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source.bitmap, 0, 0, canvas.width, canvas.height);
  if (source.mode === "vary") return;
  source.painted.forEach((painted, at) => {
    if (!painted) return;
    const x = at % model.grid * cell, y = Math.floor(at / model.grid) * cell;
    context.fillStyle = "#1f6f78c4";
    context.fillRect(x + 1, y + 1, cell - 2, cell - 2);
  });
  if (document.activeElement === canvas && canvas.matches(":focus-visible")) {
    context.lineWidth = 4;
    context.strokeStyle = "#b3471f";
    context.strokeRect(cursor % model.grid * cell, Math.floor(cursor / model.grid) * cell, cell, cell);
  }
}

// White where it is drawn anew. Each cell a little smaller than it is, so that no rounding touches its neighbours.
function maskOf({ bitmap, painted }) {
  const mask = new OffscreenCanvas(bitmap.width, bitmap.height), context = mask.getContext("2d"), cell = bitmap.width / model.grid;
  context.fillRect(0, 0, mask.width, mask.height);
  context.fillStyle = "#fff";
  painted.forEach((white, at) => white &&
    context.fillRect((at % model.grid + .2) * cell, (Math.floor(at / model.grid) + .2) * cell, cell * .6, cell * .6));
  return mask.convertToBlob();
}

function cellAt(event) {
  const box = $("mask").getBoundingClientRect();
  const along = (at, from, length) => Math.min(model.grid - 1, Math.max(0, Math.floor((at - from) / length * model.grid)));
  return along(event.clientY, box.top, box.height) * model.grid + along(event.clientX, box.left, box.width);
}

function brush() {
  let white = null; // what the stroke under way paints
  const stroke = (event) => { source.painted[cellAt(event)] = white; paintCells(); };
  const canvas = $("mask");
  canvas.onpointerdown = (event) => {
    if (source.mode !== "paint") return;
    canvas.setPointerCapture(event.pointerId);
    white = !source.painted[cellAt(event)];
    stroke(event);
  };
  canvas.onpointermove = (event) => { if (white !== null) stroke(event); };
  canvas.onpointerup = canvas.onpointercancel = () => { white = null; };
  canvas.onfocus = canvas.onblur = paintCells;
  canvas.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -model.grid, ArrowDown: model.grid }[event.key];
    if (event.key === " ") source.painted[cursor] = !source.painted[cursor];
    else if (step === undefined) return;
    else if (cursor + step >= 0 && cursor + step < model.grid ** 2) cursor += step;
    event.preventDefault();
    paintCells();
  };
}

function dropping() {
  const over = (on) => $("source").classList.toggle("over", on);
  addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  addEventListener("dragleave", () => over(false));
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    const file = [...event.dataTransfer.files].find((file) => file.type.startsWith("image/"));
    if (file) beginWith(file);
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
    if (file) beginWith(file);
  });
}

// ---- earlier drawings, in this browser ----

function store(mode, work) {
  return new Promise((resolve) => {
    const opening = indexedDB.open("tessera", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("drawings", { keyPath: "at", autoIncrement: true });
    opening.onerror = () => resolve(null); // a browser that keeps nothing still draws
    opening.onsuccess = () => {
      const transaction = opening.result.transaction("drawings", mode);
      const asked = work(transaction.objectStore("drawings"));
      transaction.oncomplete = () => resolve(asked?.result ?? null);
      transaction.onerror = transaction.onabort = () => resolve(null);
    };
  });
}

async function remember(done) {
  const { prompt, chosen, seed, pictures, from } = done;
  await store("readwrite", (drawings) => drawings.add({ prompt, chosen, seed, pictures, from, meant: null, model: model.fingerprint }));
  const keys = await store("readonly", (drawings) => drawings.getAllKeys()) ?? [];
  await store("readwrite", (drawings) => keys.slice(0, -HISTORY).forEach((key) => drawings.delete(key)));
  await recall();
}

async function recall() {
  const all = await store("readonly", (drawings) => drawings.getAll()) ?? [];
  $("history").classList.toggle("hidden", all.length === 0);
  $("strip").replaceChildren(...all.reverse().map((past) => {
    const card = Object.assign(document.createElement("button"), { type: "button", className: "past" });
    const thumbs = Object.assign(document.createElement("span"), { className: "thumbs" });
    thumbs.append(...past.pictures.slice(0, 3).map((picture) => Object.assign(new Image(), { src: url(picture), alt: "", loading: "lazy" })));
    card.append(thumbs, Object.assign(document.createElement("span"), { textContent: past.prompt || "without words" }));
    card.onclick = () => {
      if (running) return;
      $("prompt").value = past.prompt;
      show(past);
      tell(`Seed ${past.seed}.`);
      document.querySelector(".stage").scrollIntoView();
    };
    return card;
  }));
}

// ---- the page itself ----

function label() {
  for (const slider of document.querySelectorAll(".slider")) {
    const input = slider.querySelector("input");
    slider.querySelector("output").textContent = input.id === "tries" ? `${input.value} ×` : input.value;
  }
}

async function start() {
  const pattern = [0, 1, 0, 0, 1, 0, 1, 2, 1, 1, 2, 1, 1, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 1, 0, 1, 2, 2, 1, 0, 0, 0, 1, 1, 0, 0];
  const colours = ["var(--line)", "var(--gold)", "var(--accent)"];
  document.querySelector(".tiles").append(...pattern.map((colour) => {
    const tile = document.createElement("i");
    tile.style.background = colours[colour];
    return tile;
  }));
  $("form").onsubmit = (event) => { event.preventDefault(); draw(); };
  $("prompt").onkeydown = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); draw(); } };
  $("form").oninput = label;
  $("stop").onclick = () => running?.abort();
  $("forget-seed").onclick = () => { $("seed").value = ""; };
  $("choose").onclick = () => $("file").click();
  $("file").onchange = () => { if ($("file").files[0]) beginWith($("file").files[0]); $("file").value = ""; };
  $("drop-source").onclick = () => {
    source = null;
    $("no-source").classList.remove("hidden");
    $("with-source").classList.add("hidden");
  };
  $("mode-paint").onclick = () => setMode("paint");
  $("mode-vary").onclick = () => setMode("vary");
  $("paint-tools").onclick = (event) => { if (event.target.dataset.paint) paint(event.target.dataset.paint); };
  $("sheet-close").onclick = () => $("sheet").close();
  $("sheet").onclick = (event) => { if (event.target === $("sheet")) $("sheet").close(); };
  $("clear-history").onclick = async () => { await store("readwrite", (drawings) => drawings.clear()); await recall(); };
  brush();
  dropping();
  label();
  await recall();
  try {
    await meetModel();
    fetchTiles().catch(() => {}); // without them, mosaics form in plain colours
    addEventListener("hashchange", () => { if (!$("sheet").open) follow(); });
    if (!follow()) $("prompt").focus({ preventScroll: true });
  } catch (error) {
    tell(error.message, true);
  }
}

start();
