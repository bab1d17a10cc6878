// What the keys of a text field mean.

/** Say whether a key sends: Enter alone, and not the one that ends a word of an input method. */
export function isEnter(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}
