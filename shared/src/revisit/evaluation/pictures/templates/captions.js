"use strict";
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function makeSvg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function rectangle([, left, top, right, bottom], kind) {
  return makeSvg("rect", { x: left, y: top, width: right - left, height: bottom - top, class: kind });
}

const hue = look => look.patch === null ? "var(--quiet)" : HUES[look.patch % HUES.length];

/* The image with the patches that words came from, beside the captions. `picture` is what
   `Picture.as_json` gives; the first word that ReVisiT changed is shown at once. */
function showPicture(root, picture) {
  const overlays = [], outlines = new Map(), words = [];
  const stages = picture.images.map((source, image) => {
    overlays.push(makeSvg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" }));
    const alt = picture.images.length > 1 ? `${picture.title}, image ${image + 1}` : picture.title;
    const before = [...root.querySelectorAll("img")].find(each => each.src === source);
    return make("figure", { className: "stage" }, before ?? make("img", { src: source, alt }), overlays[image]);
  });
  const cells = picture.boxes.map(box => {
    const cell = box && rectangle(box, "fit");
    if (box) overlays[box[0]].append(cell);
    return cell;
  });
  const why = make("p", { className: "why", ariaLive: "polite" });
  const text = make("div", { className: "text" });
  for (const caption of picture.captions) {
    const elements = caption.words.flatMap(wordElements);
    text.append(make("h3", { textContent: caption.name }), make("p", { className: "caption" }, ...elements));
  }
  if (picture.summary) text.append(make("p", { className: "summary", textContent: picture.summary }));
  text.append(why);
  root.replaceChildren(make("div", { className: "images" }, ...stages), text);

  function wordElements(word) {
    const elements = [word.before];
    if (word.instead) elements.push(make("del", { textContent: word.instead }), " ");
    if (word.look) {
      const button = make("button", { type: "button", className: "word", textContent: word.text });
      button.style.setProperty("--hue", hue(word.look));
      if (word.instead) button.ariaLabel = `${word.text}; greedy decoding: ${word.instead}`;
      words.push({ button, ...word });
      outline(word.look);
      elements.push(button);
    } else elements.push(make("span", { textContent: word.text }));
    if (["wrong", "again"].includes(word.kind)) elements.at(-1).classList.add(word.kind);
    if (word.kind === "wrong" && word.last) {
      elements.push(make("span", { className: "not-there", textContent: "not there" }));
    }
    return elements;
  }

  function outline(look) {
    if (look.patch === null || outlines.has(look.patch)) return;
    const box = picture.boxes[look.vision_token];
    const halo = rectangle(box, "halo off"), patch = rectangle(box, "patch");
    patch.style.setProperty("--hue", hue(look));
    patch.addEventListener("pointerenter", () => show(words.find(each => each.look.patch === look.patch)));
    patch.addEventListener("pointerleave", () => show(selected));
    outlines.set(look.patch, [halo, patch]);
    overlays[box[0]].append(halo, patch);
  }

  function show(word) {
    const fits = word?.look.fits ?? [];
    const best = Math.max(...fits), least = Math.min(...fits);
    cells.forEach((cell, token) => cell?.setAttribute("fill-opacity",
      best > least ? 0.62 * (1 - (fits[token] - least) / (best - least)) : 0));
    for (const { button } of words) button.classList.toggle("on", button === word?.button);
    for (const [number, [halo, patch]] of outlines) {
      halo.classList.toggle("off", number !== word?.look.patch);
      patch.classList.toggle("off", Boolean(word) && number !== word.look.patch);
    }
    why.textContent = word ? word.look.sentence
      : words.length ? "Point at a coloured word to see where in the image it comes from." : "";
  }

  let selected = words.find(each => each.instead) ?? null;
  const putInTabOrder = one => words.forEach(({ button }) => { button.tabIndex = button === one.button ? 0 : -1; });
  words.forEach((word, position) => {
    const { button } = word;
    button.addEventListener("pointerenter", () => show(word));
    button.addEventListener("pointerleave", () => show(selected));
    button.addEventListener("focus", () => { selected = word; putInTabOrder(word); show(word); });
    button.addEventListener("click", () => button.focus());
    button.addEventListener("keydown", event => {
      const next = { ArrowRight: position + 1, ArrowDown: position + 1, ArrowLeft: position - 1,
        ArrowUp: position - 1, Home: 0, End: words.length - 1 }[event.key];
      if (event.key === "Escape") { selected = null; show(null); }
      if (next === undefined) return;
      event.preventDefault();
      words.at(next % words.length).button.focus();
    });
  });
  if (words.length) putInTabOrder(words[0]);
  show(selected);
}
