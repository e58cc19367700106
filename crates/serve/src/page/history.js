// ---- The history: earlier drawings, stored in this browser ----

const KEPT_DRAWINGS = 60;

// Runs `work` on the stored drawings. If the browser stores nothing, this returns null, and drawing
// still works.
function store(mode, work) {
  return new Promise((resolve) => {
    const opening = indexedDB.open("tessera", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("drawings", { keyPath: "at", autoIncrement: true });
    opening.onerror = () => resolve(null);
    opening.onsuccess = () => {
      const transaction = opening.result.transaction("drawings", mode);
      const result = work(transaction.objectStore("drawings"));
      transaction.oncomplete = () => resolve(result?.result ?? null);
      transaction.onerror = transaction.onabort = () => resolve(null);
    };
  });
}

async function remember({ prompt, read, truncated, unknown, distinct, chosen, seed, pictures, source }) {
  const past = { prompt, read, truncated, unknown, distinct, chosen, seed, pictures, source, model: model.fingerprint };
  await store("readwrite", (drawings) => drawings.add(past));
  const keys = await store("readonly", (drawings) => drawings.getAllKeys()) ?? [];
  await store("readwrite", (drawings) => keys.slice(0, -KEPT_DRAWINGS).forEach((key) => drawings.delete(key)));
  await showHistory();
}

async function showHistory() {
  const all = await store("readonly", (drawings) => drawings.getAll()) ?? [];
  $("history").classList.toggle("hidden", all.length === 0);
  $("strip").replaceChildren(...all.reverse().map((past) => {
    const thumbs = past.pictures.slice(0, 3).map((picture) => element("img", { src: url(picture), alt: "", loading: "lazy" }));
    const card = element("button", { type: "button", className: "past" }, element("span", { className: "thumbs" }, ...thumbs),
      element("span", { className: "name" }, past.prompt || "no prompt"));
    card.onclick = () => { if (!running) restore(past); };
    return card;
  }));
}

// Shows an earlier drawing and fills the form with all of its settings, so that Draw repeats it.
async function restore(past) {
  drawing = past;
  $("prompt").value = past.prompt;
  fill({ ...past.chosen, seed: past.seed });
  if (past.source) await startFrom(past.source.blob, past.source.mode, past.source.painted);
  else removeSource();
  showPictures(past);
  showNotes(notesOf(past));
  tell(`Restored, with its settings and seed ${past.seed}.`);
  document.querySelector(".stage").scrollIntoView();
}
