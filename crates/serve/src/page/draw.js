// ---- Drawing: from the form to the finished pictures ----

function settings() {
  const number = (id) => Number($(id).value), guided = model?.guidance !== 1;
  return { n: number("n"), tries: model?.ranks ? number("tries") : 1, guidance: guided ? number("guidance") : 1, top_p: number("top_p"),
    temperature: number("temperature"), negative: guided ? $("negative").value.trim() : "", strength: number("strength"),
    seed: $("seed").value === "" ? null : number("seed") };
}

// Puts settings into the form. Those that are missing stay as they are.
function fill(chosen) {
  for (const name of [...SLIDERS, "negative", "seed"]) if (chosen[name] !== undefined) $(name).value = chosen[name] ?? "";
  showValues();
}

// Sends the form and shows the drawing. A link highlights the picture with the index `highlighted`.
async function draw(highlighted = null) {
  running?.abort();
  const prompt = $("prompt").value.trim(), chosen = settings();
  const from = source && { blob: source.blob, mode: source.mode, painted: [...source.painted], side: source.bitmap.width };
  if (prompt === "" && from === null) { $("prompt").focus(); return tell("Enter a prompt first.", true); }
  if (from?.mode === "paint" && !from.painted.includes(true)) return tell("Paint the cells to redraw first.", true);
  const stop = running = new AbortController();
  drawing = { prompt, chosen, pictures: [], tokens: [], source: from, highlighted };
  showBusy(true);
  showNotes([]);
  tell("Waiting…");
  scrollToPictures();
  try {
    await receive(await call(...await request(prompt, chosen, from, stop.signal)), stop);
  } catch (error) {
    if (stop !== running) return; // another drawing has replaced this one
    if (error.name !== "AbortError") tell(error.message, true);
    else tell("Stopped.");
  } finally {
    if (stop === running) { running = null; showBusy(false); }
  }
}

async function receive(response, stop) {
  for await (const event of events(response)) {
    if (stop !== running) return;
    if (event.error) throw new Error(event.error.message);
    if (event.type === "tessera.started") started(event);
    else if (event.type === "tessera.tokens") showTokens(event);
    else if (event.type.endsWith(".completed")) drawing.pictures.push(event);
  }
  if (drawing.pictures.length < drawing.chosen.n) throw new Error("The connection ended before the drawing was finished.");
  await finished();
}

// Scrolls to the pictures: they may be below the form, under the keyboard of a phone, or above the
// settings.
function scrollToPictures() {
  const stage = document.querySelector(".stage"), { top } = stage.getBoundingClientRect();
  if (top >= 0 && top < innerHeight / 2) return;
  if (matchMedia("(pointer: coarse)").matches) document.activeElement.blur();
  stage.scrollIntoView();
}

// Shows an empty mosaic for each candidate.
function started({ drawn, seed, revised_prompt, truncated, unknown_words, given, strength }) {
  Object.assign(drawing, { seed, read: revised_prompt, truncated, unknown: unknown_words ?? [] });
  arrange(drawn, "pictures forming", Array.from({ length: drawn }, () => {
    const canvas = element("canvas", { width: model.side, height: model.side, ariaHidden: "true" });
    if (strength === 0) given.forEach((code, position) => code !== null && showTile(canvas, position, code));
    return element("div", { className: "picture" }, canvas);
  }));
  showNotes(notesOf(drawing));
  tell(drawing.chosen.tries > 1 && drawn > drawing.chosen.n
    ? `Drawing ${drawn} candidates to choose the best ${drawing.chosen.n}…` : `Drawing ${counted(drawn, "picture")}…`);
}

function showTokens({ done, total, new: tokens }) {
  $("progress").value = done / total;
  for (const [picture, position, code] of tokens) {
    (drawing.tokens[picture] ??= []).push(code);
    const canvas = $("pictures").children[picture]?.firstChild;
    if (canvas) showTile(canvas, position, code);
  }
}

function showTile(canvas, position, code) {
  const cell = model.side / model.grid, x = position % model.grid * cell, y = Math.floor(position / model.grid) * cell;
  const context = canvas.getContext("2d");
  if (!tiles) { // the tiles have not arrived yet: show a plain colour for each code
    context.fillStyle = `hsl(${code * 137 % 360} 45% 65%)`;
    context.fillRect(x, y, cell, cell);
    return;
  }
  const columns = tiles.width / cell;
  context.drawImage(tiles, code % columns * cell, Math.floor(code / columns) * cell, cell, cell, x, y, cell, cell);
}

async function finished() {
  const n = drawing.pictures.length, ranked = n > 1 && drawing.pictures.some((picture) => picture.score !== null);
  drawing.distinct = new Set(drawing.pictures.map((picture) => drawing.tokens[picture.index].join())).size;
  showPictures(drawing);
  showNotes(notesOf(drawing));
  tell(`${counted(n, "picture")}${ranked ? ", the best score first" : ""}. Seed ${drawing.seed}.`);
  await remember(drawing);
}

// Returns notes for the user: a prompt that is too long, words that the model does not know, and
// equal pictures.
function notesOf({ read, truncated, unknown = [], distinct, pictures }) {
  const notes = [];
  if (truncated) notes.push([`The prompt is too long. The model reads only up to “…${read.slice(-30)}”.`]);
  for (const { word, suggestion } of unknown) {
    const note = [`The model does not know the word “${word}”.`];
    if (suggestion !== null) {
      const button = element("button", { type: "button", className: "chip" }, `Use “${suggestion}”`);
      button.onclick = () => replaceWord(word, suggestion);
      note.push(" ", button);
    }
    notes.push(note);
  }
  if (distinct < pictures.length)
    notes.push([`${distinct === 1 ? "All pictures are the same" : `Only ${distinct} pictures differ`}. Raise top-p or temperature for more variety.`]);
  return notes;
}

// Replaces a word of the prompt and draws again.
function replaceWord(word, replacement) {
  const quoted = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const whole = new RegExp(`(?<![\\p{L}\\p{N}])${quoted}(?![\\p{L}\\p{N}])`, "giu");
  $("prompt").value = $("prompt").value.replace(whole, replacement);
  draw();
}
