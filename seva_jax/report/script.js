// The page's behaviour: filters of the galleries, and enlarged images. It uses only what is in the
// page and loads nothing. Without it everything is still shown, unfiltered and small: filters start
// hidden and image buttons disabled.
"use strict";

for (const form of document.querySelectorAll(".filters")) {
  const cards = [...form.parentElement.querySelectorAll(".card")];
  const search = form.querySelector("[type=search]");
  const count = form.querySelector("output");
  let texts = null; // text of the cards, read at the first search

  const apply = () => {
    const chosen = [...form.querySelectorAll(":checked")]
      .map((control) => [control.dataset.facet, control.value])
      .filter(([facet, value]) => facet && value);
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !texts) texts = cards.map((card) => card.textContent.toLowerCase());
    let shown = 0;
    cards.forEach((card, index) => {
      const fits =
        chosen.every(([facet, value]) => card.dataset[facet].split(" ").includes(value)) &&
        words.every((word) => texts[index].includes(word));
      card.hidden = !fits;
      shown += fits;
    });
    count.textContent = `${shown.toLocaleString("en")} of ${cards.length.toLocaleString("en")} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("pageshow", apply); // going back restores the state of the controls
  form.hidden = false;
  apply();
}

const make = (tag, parent, properties) =>
  parent.appendChild(Object.assign(document.createElement(tag), properties));

const dialog = make("dialog", document.body, { id: "zoom" });
const picture = make("img", make("figure", dialog), { alt: "" });
const caption = make("p", dialog, { id: "zoom-caption" });
const controls = make("div", dialog);
dialog.setAttribute("aria-labelledby", caption.id);

let opener = null; // the button of the enlarged image

const show = (button) => {
  opener = button;
  const small = button.querySelector("img");
  Object.assign(picture, { src: small.src, alt: small.alt, className: small.className });
  caption.textContent = small.alt;
};

const step = (by) => {
  const buttons = [...opener.closest("section").querySelectorAll(".card:not([hidden]) .zoom")];
  show(buttons[(buttons.indexOf(opener) + by + buttons.length) % buttons.length]);
};

const control = (text, action) =>
  make("button", controls, { type: "button", textContent: text }).addEventListener("click", action);
control("← Previous", () => step(-1));
control("Next →", () => step(1));
controls.lastChild.autofocus = true;
control("Close", () => dialog.close());

dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // a click outside of the image
});
dialog.addEventListener("close", () => opener.focus());

for (const button of document.querySelectorAll(".zoom")) {
  button.disabled = false;
  button.addEventListener("click", () => {
    show(button);
    dialog.showModal();
  });
}
