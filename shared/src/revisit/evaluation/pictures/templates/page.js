const { examples, warning, most_bytes } = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const result = document.querySelector(".result"), tiles = [...document.querySelectorAll("[data-example]")];
let chosen = null, running = null;  // the number of an example or a File; the request's AbortController

function alpha() {
  const power = Number(byId("alpha").value);
  return power <= -9 ? 0 : 10 ** power;
}

function showAlpha() {
  const digits = Number(byId("alpha").value) % 1 ? 1 : 0;
  const text = alpha() && alpha() < 0.01 ? alpha().toExponential(digits) : String(Number(alpha().toPrecision(2)));
  byId("alpha-value").textContent = text;
  byId("alpha").ariaValueText = text;
}

function showResult(picture) {
  showPicture(result, picture);
  byId("note").textContent = picture.note;
  byId("note").hidden = !picture.note;
}

function showCaptions(image, captions) {
  const title = chosen.name ?? examples[chosen].title;
  showResult({ title, images: [image], boxes: [], summary: "", note: "", captions });
}

function stop() {
  running?.abort();
  running = null;
  byId("stop").disabled = true;
}

/* The last choice wins. */
function choose(choice) {
  stop();
  chosen = choice;
  const example = examples[choice];
  tiles.forEach((tile, number) => tile.setAttribute("aria-pressed", number === choice));
  document.querySelector(".upload").classList.toggle("chosen", !example);
  byId("warning").hidden = Boolean(example) || !warning;
  byId("alert").textContent = byId("status").textContent = "";
  if (example) byId("file").value = "";
  byId("about").textContent = example?.picture ? ABOUT : "";
  if (example?.picture) showResult(example.picture);
  else showCaptions(example ? example.image : URL.createObjectURL(choice), []);
}

function fail(text) {
  byId("status").textContent = "";
  byId("alert").textContent = text;
}

async function describe() {
  stop();
  const file = chosen instanceof File ? chosen : null, request = new AbortController();
  if (file?.size > most_bytes) return fail(`an image of at most ${most_bytes >> 20} MiB is taken`);
  const settings = { question: byId("question").value, alpha: alpha(), layers: byId("layers")?.value ?? "last",
    divergence: document.querySelector("[name=divergence]:checked").value,
    ...(file ? { name: file.name } : { example: chosen }) };
  running = request;
  byId("stop").disabled = false;
  byId("alert").textContent = byId("about").textContent = "";
  byId("status").textContent = "Describing …";
  const image = result.querySelector("img").src;
  try {
    const answer = await fetch(`describe?${new URLSearchParams(settings)}`, {
      method: "POST", body: file ?? "", signal: request.signal,
      headers: { "Content-Type": "application/octet-stream" } });
    for await (const line of lines(answer.body)) {
      if (request.signal.aborted) return;
      if (line.error) fail(line.error);
      if (line.waiting) {
        const others = line.waiting > 1 ? "others" : "other";
        byId("status").textContent = `Waiting: the model is describing for ${line.waiting} ${others} first.`;
      }
      if (line.captions) {
        byId("status").textContent = "Describing …";
        showCaptions(image, line.captions);
      }
      if (line.picture) {
        byId("status").textContent = "Done.";
        showResult(line.picture);
      }
    }
  } catch (error) {
    if (!request.signal.aborted) fail("the server cannot be reached: is it still running?");
  } finally {
    if (running === request) stop();
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

function chooseExample(number) {
  choose(number);
  if (!examples[number].picture) describe();
}

tiles.forEach((tile, number) => tile.addEventListener("click", () => chooseExample(number)));
byId("file").addEventListener("change", event => { if (event.target.files.length) choose(event.target.files[0]); });
byId("alpha").addEventListener("input", showAlpha);
byId("stop").addEventListener("click", () => {
  stop();
  byId("status").textContent = "Stopped.";
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
chooseExample(0);
