// ---- The page: its state, and what all parts use ----

const SLIDERS = ["n", "tries", "guidance", "top_p", "temperature", "strength"];

let model = null;      // what /v1/models says
let tiles = null;      // the sheet with a tile for each code, once it has arrived
let running = null;    // the AbortController of the current request
let drawing = null;    // what the stage shows: { prompt, chosen, seed, pictures, tokens, source, ... }
let source = null;     // the picture to start from: { bitmap, blob, painted, mode }
let cursor = 0;        // the cell that the keyboard is at

const $ = (id) => document.getElementById(id);
const counted = (n, noun) => n === 1 ? `1 ${noun}` : `${n} ${noun}s`;

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function tell(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

function showNotes(notes) {
  $("notes").replaceChildren(...notes.map((parts) => element("li", {}, ...parts)));
  $("notes").classList.toggle("hidden", notes.length === 0);
}

function showBusy(busy) {
  $("stop").classList.toggle("hidden", !busy);
  $("progress").classList.toggle("hidden", !busy);
  $("progress").value = 0;
}

// Shows the value of each slider next to its name.
function showValues() {
  for (const slider of document.querySelectorAll(".slider")) {
    const input = slider.querySelector("input");
    slider.querySelector("output").textContent = input.id === "tries" ? `${input.value} ×` : input.value;
  }
}

// The picture of an empty stage: a mosaic of a flower.
function showEmptyStage() {
  const pattern = [0, 1, 0, 0, 1, 0, 1, 2, 1, 1, 2, 1, 1, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 1, 0, 1, 2, 2, 1, 0, 0, 0, 1, 1, 0, 0];
  const colours = ["var(--line)", "var(--gold)", "var(--accent)"];
  document.querySelector(".tiles").append(...pattern.map((colour) => {
    const tile = element("i", {});
    tile.style.background = colours[colour];
    return tile;
  }));
}

function listen() {
  $("form").onsubmit = (event) => { event.preventDefault(); draw(); };
  $("prompt").onkeydown = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); draw(); } };
  $("form").oninput = showValues;
  $("stop").onclick = () => running?.abort();
  $("forget-seed").onclick = () => { $("seed").value = ""; };
  $("choose").onclick = () => $("file").click();
  $("file").onchange = () => { if ($("file").files[0]) startFrom($("file").files[0]); $("file").value = ""; };
  $("drop-source").onclick = removeSource;
  $("mode-paint").onclick = () => setMode("paint");
  $("mode-vary").onclick = () => setMode("vary");
  $("paint-tools").onclick = (event) => { if (event.target.dataset.paint) paint(event.target.dataset.paint); };
  $("sheet-close").onclick = () => $("sheet").close();
  $("sheet").onclick = (event) => { if (event.target === $("sheet")) $("sheet").close(); };
  $("clear-history").onclick = async () => { await store("readwrite", (drawings) => drawings.clear()); await showHistory(); };
  listenToBrush();
  listenToDrops();
}

async function start() {
  showEmptyStage();
  listen();
  showValues();
  await showHistory();
  try {
    await fetchModel();
    fetchTiles().catch(() => {}); // without tiles, mosaics form in plain colours
    addEventListener("hashchange", () => { if (!$("sheet").open) followLink(); });
    if (!followLink()) $("prompt").focus({ preventScroll: true });
  } catch (error) {
    tell(error.message, true);
  }
}

start();
