// Texts on the clipboard, also where a page from another machine has no `navigator.clipboard`.

import { announce } from "./announce.js";
import { make } from "./dom.js";
import { icon } from "./icons.js";
import { words } from "./words.js";

const SHOWN_MS = 2000;

/** Return a button that copies what `text()` returns at the moment. */
export function copyButton(text, label = words.copy) {
  const button = make("button", { type: "button", class: "quiet copy" }, icon("copy"), make("span", {}, label));
  button.addEventListener("click", async () => {
    const copied = await copy(text());
    const said = copied ? words.copied : words.notCopied;
    button.replaceChildren(icon(copied ? "done" : "copy"), make("span", {}, said));
    announce(said);
    setTimeout(() => button.replaceChildren(icon("copy"), make("span", {}, label)), SHOWN_MS);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedBySelection(text);
  }
}

function copiedBySelection(text) {
  const before = document.activeElement;
  const field = make("textarea", { class: "unseen", readonly: true, "aria-hidden": "true", tabindex: "-1" });
  field.value = text;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  before?.focus();
  return copied;
}
