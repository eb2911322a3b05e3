"use strict";
function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function rectangle([, left, top, right, bottom], kind) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const sides = { x: left, y: top, width: right - left, height: bottom - top, class: kind };
  for (const [name, value] of Object.entries(sides)) made.setAttribute(name, value);
  return made;
}

const hue = look => look.patch === null ? "var(--quiet)" : HUES[look.patch % HUES.length];

/* The image with the patches that words came from, beside the captions. `picture` is what
   `Picture.as_json` gives; the first word that ReVisiT changed is shown at once. */
function showPicture(root, picture) {
  const overlays = [], fits = [], outlines = new Map(), words = [];
  const stages = picture.images.map((source, image) => {
    const overlay = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    overlay.setAttribute("viewBox", "0 0 1 1");
    overlay.setAttribute("preserveAspectRatio", "none");
    overlay.setAttribute("aria-hidden", "true");
    overlays.push(overlay);
    const alt = picture.images.length > 1 ? `${picture.title}, image ${image + 1}` : picture.title;
    const before = [...root.querySelectorAll("img")].find(each => each.src === source);
    return make("figure", { className: "stage" }, before ?? make("img", { src: source, alt }), overlay);
  });
  for (const box of picture.boxes) {
    if (box) overlays[box[0]].append(rectangle(box, "fit"));
    fits.push(box && overlays[box[0]].lastChild);
    if (box) fits.at(-1).setAttribute("fill-opacity", 0);
  }
  const summary = make("p", { className: "summary", textContent: picture.summary });
  const why = make("p", { className: "why" });
  why.setAttribute("aria-live", "polite");
  const text = make("div", { className: "text" });
  for (const { name, words: ofCaption } of picture.captions) {
    const line = make("p", { className: "caption" });
    for (const word of ofCaption) line.append(...pieces(word));
    text.append(make("h3", { textContent: name }), line);
  }
  text.append(...(picture.summary ? [summary] : []), why);
  root.replaceChildren(make("div", { className: "images" }, ...stages), text);

  function pieces(word) {
    const made = [word.before];
    if (word.instead) made.push(make("del", { textContent: word.instead }), " ");
    if (word.look) {
      const button = make("button", { type: "button", className: "word", textContent: word.text });
      button.style.setProperty("--hue", hue(word.look));
      if (word.instead) {
        button.setAttribute("aria-label", `${word.text}; greedy decoding: ${word.instead}`);
      }
      words.push({ button, ...word });
      outline(word.look);
      made.push(button);
    } else made.push(make("span", { textContent: word.text }));
    if (word.kind === "wrong") {
      made.at(-1).classList.add("wrong");
      if (word.last) made.push(make("span", { className: "not-there", textContent: "not there" }));
    } else if (word.kind === "again") made.at(-1).classList.add("again");
    return made;
  }

  function outline(look) {
    if (look.patch === null || outlines.has(look.patch)) return;
    const box = picture.boxes[look.vision_token];
    const both = [rectangle(box, "halo off"), rectangle(box, "patch")];
    both[1].style.setProperty("--hue", hue(look));
    both[1].addEventListener("pointerenter", () => show(words.find(each => each.look.patch === look.patch)));
    both[1].addEventListener("pointerleave", () => show(held));
    outlines.set(look.patch, both);
    overlays[box[0]].append(...both);
  }

  function show(one) {
    const values = one?.look.fits ?? [];
    const best = Math.max(...values), least = Math.min(...values);
    fits.forEach((cell, token) => cell?.setAttribute("fill-opacity",
      values.length && best > least ? 0.62 * (1 - (values[token] - least) / (best - least)) : 0));
    for (const { button } of words) button.classList.toggle("on", button === one?.button);
    for (const [patch, [halo, drawn]] of outlines) {
      halo.classList.toggle("off", patch !== one?.look.patch);
      drawn.classList.toggle("off", Boolean(one) && patch !== one.look.patch);
    }
    why.textContent = one ? one.look.sentence
      : words.length ? "Point at a coloured word to see where in the image it comes from." : "";
  }

  let held = words.find(each => each.instead) ?? null;
  const reach = place => words.forEach(({ button }, at) => { button.tabIndex = at === place ? 0 : -1; });
  words.forEach((one, place) => {
    one.button.addEventListener("pointerenter", () => show(one));
    one.button.addEventListener("pointerleave", () => show(held));
    one.button.addEventListener("focus", () => { held = one; reach(place); show(one); });
    one.button.addEventListener("click", () => one.button.focus());
    one.button.addEventListener("keydown", event => {
      const to = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1,
        ArrowUp: place - 1, Home: 0, End: words.length - 1 }[event.key];
      if (event.key === "Escape") { held = null; show(null); }
      if (to === undefined) return;
      event.preventDefault();
      words[(to + words.length) % words.length].button.focus();
    });
  });
  reach(0);
  show(held);
}
