const { examples, warning, most_bytes } = JSON.parse(document.getElementById("data").textContent);
const by = id => document.getElementById(id);
const root = document.querySelector(".result"), tiles = [...document.querySelectorAll("[data-example]")];
let chosen = null, running = null;

const alpha = () => Number(by("alpha").value) <= -9 ? 0 : 10 ** Number(by("alpha").value);
function showAlpha() {
  const power = Number(by("alpha").value), digits = power % 1 ? 1 : 0;
  const text = power <= -9 ? "0" : power < -2 ? alpha().toExponential(digits) : String(Number(alpha().toPrecision(2)));
  by("alpha-value").textContent = text;
  by("alpha").setAttribute("aria-valuetext", text);
}

function showNote(text) {
  by("note").textContent = text;
  by("note").hidden = !text;
}

function stop() {
  running?.abort();
  running = null;
  by("stop").disabled = true;
}

/* The last choice wins: an example by its number, or a file. */
function choose(what) {
  stop();
  chosen = what;
  const own = typeof what !== "number";
  tiles.forEach((tile, at) => tile.setAttribute("aria-pressed", at === what));
  document.querySelector(".own").classList.toggle("chosen", own);
  by("warning").hidden = !own || !warning;
  by("alert").textContent = by("status").textContent = "";
  if (!own) by("file").value = "";
  const made = own ? null : examples[what].picture;
  by("about").textContent = made ? ABOUT : "";
  if (made) return showResult(made);
  const source = own ? URL.createObjectURL(what) : examples[what].image;
  const title = own ? what.name : examples[what].title;
  showResult({ title, images: [source], boxes: [], summary: "", note: "", captions: [] });
}

function showResult(made) {
  showPicture(root, made);
  showNote(made.note);
}

function fail(text) {
  by("status").textContent = "";
  by("alert").textContent = text;
}

async function describe() {
  stop();
  const own = typeof chosen !== "number", mine = new AbortController();
  if (own && chosen.size > most_bytes) return fail(`an image of at most ${most_bytes >> 20} MiB is taken`);
  const settings = { question: by("question").value, alpha: alpha(), layers: by("layers")?.value ?? "last",
    divergence: document.querySelector("[name=divergence]:checked").value,
    ...(own ? { name: chosen.name } : { example: chosen }) };
  running = mine;
  by("stop").disabled = false;
  by("alert").textContent = by("about").textContent = "";
  by("status").textContent = "Describing …";
  const title = own ? chosen.name : examples[chosen].title;
  const images = [root.querySelector("img").src];
  try {
    const answer = await fetch(`describe?${new URLSearchParams(settings)}`, {
      method: "POST", body: own ? chosen : "", signal: mine.signal,
      headers: { "Content-Type": "application/octet-stream" } });
    for await (const line of lines(answer.body)) {
      if (mine.signal.aborted) return;
      if (line.error) fail(line.error);
      if (line.waiting) {
        by("status").textContent = `Waiting: the model is describing for ${line.waiting} other${line.waiting > 1 ? "s" : ""} first.`;
      }
      if (line.captions) {
        by("status").textContent = "Describing …";
        showPicture(root, { title, images, boxes: [], summary: "", note: "", captions: line.captions });
      }
      if (line.picture) {
        by("status").textContent = "Done.";
        showResult(line.picture);
      }
    }
  } catch (error) {
    if (!mine.signal.aborted) fail("the server cannot be reached: is it still running?");
  } finally {
    if (running === mine) stop();
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const whole = (rest + part.value).split("\n");
    rest = whole.pop();
    for (const line of whole) yield JSON.parse(line);
  }
}

tiles.forEach((tile, at) => tile.addEventListener("click", () => {
  choose(at);
  if (!examples[at].picture) describe();
}));
by("file").addEventListener("change", () => { if (by("file").files.length) choose(by("file").files[0]); });
by("alpha").addEventListener("input", showAlpha);
by("stop").addEventListener("click", () => {
  stop();
  by("status").textContent = "Stopped.";
});
document.querySelector("form").addEventListener("submit", event => { event.preventDefault(); describe(); });
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    document.body.classList.toggle("drop", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });
}
showAlpha();
choose(0);
if (!examples[0].picture) describe();
