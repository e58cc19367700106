// ---- The picture to start from ----

// Loads a picture into the form. `painted` are the cells to redraw: the name of a part, or one
// entry per cell.
async function startFrom(blob, mode = "paint", painted = "bottom") {
  try {
    let bitmap = await createImageBitmap(blob);
    if (bitmap.width !== bitmap.height) { // take the middle square, like the server
      const side = Math.min(bitmap.width, bitmap.height), to = Math.min(side, 768);
      const square = new OffscreenCanvas(to, to);
      square.getContext("2d").drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, to, to);
      blob = await square.convertToBlob();
      bitmap = await createImageBitmap(blob);
      tell("Only the middle square of the picture is used.");
    }
    source = { bitmap, blob, painted: Array(model.grid ** 2).fill(false), mode };
  } catch {
    return tell("This browser cannot read that file as a picture.", true);
  }
  if (typeof painted === "string") paint(painted);
  else if (painted.length === source.painted.length) source.painted = [...painted];
  setMode(mode);
  showSource(true);
  $("source").scrollIntoView({ block: "nearest" });
  if (mode === "paint") $("mask").focus({ preventScroll: true });
}

function removeSource() {
  source = null;
  showSource(false);
}

function showSource(present) {
  $("no-source").classList.toggle("hidden", present);
  $("with-source").classList.toggle("hidden", !present);
}

function setMode(mode) {
  source.mode = mode;
  for (const name of ["paint", "vary"]) {
    $(`mode-${name}`).setAttribute("aria-pressed", mode === name);
    $(`${name}-tools`).classList.toggle("hidden", mode !== name);
  }
  showCells();
}

function paint(part) {
  const half = Math.floor(model.grid / 2);
  source.painted = source.painted.map((painted, at) => {
    const x = at % model.grid, y = Math.floor(at / model.grid);
    return { bottom: y >= half, right: x >= half, invert: !painted, none: false }[part];
  });
  showCells();
}

function showCells() {
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

// Returns the mask for the API: cells to redraw are white. Each white square is smaller than its
// cell, so that rounding does not touch a neighbour.
function maskOf({ side, painted }) {
  const mask = new OffscreenCanvas(side, side), context = mask.getContext("2d"), cell = side / model.grid;
  context.fillRect(0, 0, side, side);
  context.fillStyle = "#fff";
  painted.forEach((white, at) => white &&
    context.fillRect((at % model.grid + .2) * cell, (Math.floor(at / model.grid) + .2) * cell, cell * .6, cell * .6));
  return mask.convertToBlob();
}

// Returns the place of the pointer on the mask, in cells from the top left.
function place(event) {
  const box = $("mask").getBoundingClientRect();
  const along = (at, from, length) => Math.min(model.grid - .001, Math.max(0, (at - from) / length * model.grid));
  return { x: along(event.clientX, box.left, box.width), y: along(event.clientY, box.top, box.height) };
}

// Returns the cells on the line between two places. The steps are short, because a fast pointer
// reports few places.
function cellsBetween(from, to) {
  const steps = Math.ceil(4 * Math.hypot(to.x - from.x, to.y - from.y)) || 1;
  return Array.from({ length: steps + 1 }, (_, step) => {
    const along = (a, b) => Math.floor(a + (b - a) * step / steps);
    return along(from.y, to.y) * model.grid + along(from.x, to.x);
  });
}

function listenToBrush() {
  let stroke = null; // the current stroke: its place, and whether it paints or erases
  const canvas = $("mask");
  const extend = (event) => {
    const to = place(event);
    for (const cell of cellsBetween(stroke.at, to)) source.painted[cell] = stroke.paints;
    stroke.at = to;
    showCells();
  };
  canvas.onpointerdown = (event) => {
    if (source.mode !== "paint") return;
    canvas.setPointerCapture(event.pointerId);
    const at = place(event);
    stroke = { at, paints: !source.painted[cellsBetween(at, at)[0]] };
    extend(event);
  };
  canvas.onpointermove = (event) => { if (stroke !== null) extend(event); };
  canvas.onpointerup = canvas.onpointercancel = () => { stroke = null; };
  canvas.onfocus = canvas.onblur = showCells;
  canvas.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -model.grid, ArrowDown: model.grid }[event.key];
    if (event.key === " ") source.painted[cursor] = !source.painted[cursor];
    else if (step === undefined) return;
    else if (cursor + step >= 0 && cursor + step < model.grid ** 2) cursor += step;
    event.preventDefault();
    showCells();
  };
}

// Loads pictures that are dropped on the page or pasted.
function listenToDrops() {
  const over = (on) => $("source").classList.toggle("over", on);
  const load = (files) => {
    const file = [...files].find((file) => file.type.startsWith("image/"));
    if (file) startFrom(file);
  };
  addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  addEventListener("dragleave", () => over(false));
  addEventListener("drop", (event) => { event.preventDefault(); over(false); load(event.dataTransfer.files); });
  addEventListener("paste", (event) => load(event.clipboardData.files));
}
