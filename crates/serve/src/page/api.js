// ---- The server's API, which other programs use too: see /openapi.json ----

const BASE = location.origin + location.pathname.replace(/\/?$/, "/"); // may be below the path of a proxy

function headers(extra = {}) {
  const key = localStorage.getItem("tessera-key");
  return key ? { ...extra, Authorization: `Bearer ${key}` } : extra;
}

async function call(path, options = {}) {
  for (;;) {
    const response = await fetch(BASE + path, { ...options, headers: headers(options.headers) });
    if (response.ok) return response;
    if (response.status === 401 && await askForKey()) continue;
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message ?? `The server answered ${response.status}.`);
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

// Yields the server-sent events of a response.
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

async function fetchModel() {
  model = (await (await call("v1/models")).json()).data[0].tessera;
  const size = `${model.side}×${model.side} pixels, ${model.grid}×${model.grid} tokens`;
  $("model").replaceChildren(element("b", {}, model.name), ` ${model.fingerprint}`, document.createElement("br"), element("span", {}, size));
  $("about").textContent = `${model.about} A picture has ${size}. The model reads the first ${model.prompt_tokens} tokens of a prompt.`.trim();
  document.querySelector(".stage").style.setProperty("--grid", model.grid);
  $("tries-label").classList.toggle("hidden", !model.ranks);
  for (const id of ["guidance-label", "negative-label"]) $(id).classList.toggle("hidden", model.guidance === 1);
  for (const example of model.examples) {
    const chip = element("button", { type: "button", className: "chip" }, example);
    chip.onclick = () => { $("prompt").value = example; draw(); };
    $("examples").append(chip);
  }
}

async function fetchTiles() {
  const blob = await (await call(`v1/models/${model.id}/codes.png`)).blob();
  tiles = await createImageBitmap(blob);
  // Tokens that came before the tiles were shown as plain colours.
  document.querySelectorAll(".forming canvas").forEach((canvas, picture) =>
    drawing.tokens[picture]?.forEach((code, position) => showTile(canvas, position, code)));
}

// Returns the request for a drawing: the path and the options for `call`.
async function request(prompt, chosen, from, signal) {
  const wanted = parameters(prompt, chosen);
  if (from === null) {
    const body = JSON.stringify(wanted);
    return ["v1/images/generations", { method: "POST", headers: { "Content-Type": "application/json" }, body, signal }];
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(wanted)) form.append(name, value);
  form.append("image", from.blob, "picture.png");
  if (from.mode === "vary") form.append("strength", chosen.strength);
  else form.append("mask", await maskOf(from), "mask.png");
  return [from.mode === "vary" ? "v1/images/variations" : "v1/images/edits", { method: "POST", body: form, signal }];
}

function parameters(prompt, chosen) {
  const { n, tries, guidance, top_p, temperature, negative, seed } = chosen;
  const wanted = { prompt, n, guidance, top_p, temperature, stream: true, stream_tokens: true };
  if (tries > 1 && prompt.trim() !== "") wanted.best_of = n * tries;
  if (negative) wanted.negative_prompt = negative;
  if (seed !== null) wanted.seed = seed;
  return wanted;
}
