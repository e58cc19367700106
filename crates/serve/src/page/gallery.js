// ---- Finished pictures, one picture, and links ----

// Fills the stage with `count` cells in as many rows as columns, or one row fewer: nine are 3×3.
function arrange(count, className, cells) {
  const columns = Math.ceil(Math.sqrt(count)), stage = document.querySelector(".stage");
  stage.style.setProperty("--columns", columns);
  stage.style.setProperty("--rows", Math.ceil(count / columns));
  $("pictures").className = className;
  $("pictures").replaceChildren(...cells);
  $("empty").classList.add("hidden");
}

function showPictures(past) {
  arrange(past.pictures.length, "pictures", past.pictures.map((picture, at) => {
    const card = element("button", { type: "button", className: "picture" });
    card.style.setProperty("--at", at);
    card.classList.toggle("highlighted", past.highlighted === picture.index);
    card.append(element("img", { src: url(picture), alt: `${past.prompt || "a picture"}, number ${at + 1}` }));
    if (picture.score !== null) {
      const score = element("span", {}, "score ", element("b", {}, picture.score.toFixed(3)));
      card.append(element("span", { className: "score", title: SCORE }, element("span", {}, `${at + 1}`), score));
    }
    card.onclick = () => openSheet(past, picture);
    return card;
  }));
}

const SCORE = "How well the picture fits the prompt: the cosine of their embeddings";
const url = (picture) => `data:image/png;base64,${picture.b64_json}`;

function bytesOf(picture) {
  return new Blob([Uint8Array.from(atob(picture.b64_json), (character) => character.charCodeAt(0))], { type: "image/png" });
}

function openSheet(past, picture) {
  const name = past.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "picture";
  $("sheet-image").src = url(picture);
  $("sheet-image").alt = past.prompt;
  $("sheet-title").textContent = past.prompt || "No prompt";
  $("sheet-facts").replaceChildren(...facts(past, picture).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, `${value}`)]));
  Object.assign($("sheet-download"), { href: url(picture), download: `tessera-${name}-${past.seed}-${picture.index}.png` });
  const started = Boolean(past.source ?? past.from);
  $("sheet-link").disabled = started;
  $("sheet-hint").textContent = started ? "There is no link to a drawing that started from a picture. Download the file instead." : "";
  const begin = (mode, painted) => { $("sheet").close(); $("prompt").value = past.prompt; return startFrom(bytesOf(picture), mode, painted); };
  $("sheet-vary").onclick = async () => { await begin("vary", "none"); draw(); };
  $("sheet-finish").onclick = async () => { await begin("paint", "bottom"); draw(); };
  $("sheet-paint").onclick = () => begin("paint", "none");
  $("sheet-link").onclick = () => copy(link(past, picture));
  $("sheet").showModal();
}

// Returns how a picture was made, as names and values. The prompt that the model read is included
// if it differs from the one that was sent.
function facts({ prompt, read, seed, chosen, source, model: drawer }, { index, score }) {
  const fraction = (part) => `${Math.round(part * 100)} % of the cells redrawn`;
  const started = source && fraction(source.mode === "vary" ? chosen.strength : source.painted.filter(Boolean).length / source.painted.length);
  const all = { "Read as": read === prompt ? undefined : read, "Started from": started ? `a picture, ${started}` : undefined, Seed: seed,
    Index: index, Score: score?.toFixed(3), Guidance: chosen.guidance, "Top-p": chosen.top_p, Temperature: chosen.temperature,
    "Negative prompt": chosen.negative, Model: `${model.name} ${drawer ?? model.fingerprint}` };
  return Object.entries(all).filter(([, value]) => value !== undefined && value !== "");
}

function link(past, picture) {
  const { n, tries, guidance, top_p, temperature, negative } = past.chosen;
  const all = { p: past.prompt, seed: past.seed, i: picture.index, n, tries, guidance, top_p, temperature, not: negative, model: past.model ?? model.fingerprint };
  const present = Object.entries(all).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return `${location.origin}${location.pathname}#${new URLSearchParams(present)}`;
}

async function copy(text) {
  location.hash = new URL(text).hash; // the link can also be copied from the address bar
  const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  $("sheet-hint").textContent = copied ? "Copied. The link draws the same picture wherever this model runs." : "The link is in the address bar.";
}

// If the page was opened with a link to a picture, draws that picture and returns true.
function followLink() {
  const hash = new URLSearchParams(location.hash.slice(1));
  if (!hash.has("p")) return false;
  removeSource();
  $("prompt").value = hash.get("p");
  const names = [["seed", "seed"], ["negative", "not"], ...SLIDERS.map((id) => [id, id])];
  fill(Object.fromEntries(names.filter(([, name]) => hash.has(name)).map(([id, name]) => [id, hash.get(name)])));
  const other = hash.get("model");
  if (other && other !== model.fingerprint) tell(`Another model (${other}) drew that picture. This model draws a different one from the same seed.`, true);
  else draw(hash.has("i") ? Number(hash.get("i")) : null);
  return true;
}
