// Elements by code: nothing on these pages ever parses a text as HTML.

/** Return a new element. Attributes and children that are null are left out; `on` holds its listeners. */
export function make(tag, { on = {}, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const [name, heard] of Object.entries(on)) element.addEventListener(name, heard);
  for (const child of children.flat()) if (child !== null && child !== undefined) element.append(child);
  return element;
}

/** Return the element of this id. */
export const byId = (id) => document.getElementById(id);

const RIGHT_TO_LEFT = /^[\p{Script=Arabic}\p{Script=Hebrew}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}\p{Script=Adlam}]/u;

/** Return the direction of a text by its first letter, as `dir="auto"` finds it, for blocks that hold such blocks. */
export function direction(text) {
  const letter = /\p{L}/u.exec(text.slice(0, 1000));
  return letter && RIGHT_TO_LEFT.test(letter[0]) ? "rtl" : "ltr";
}
