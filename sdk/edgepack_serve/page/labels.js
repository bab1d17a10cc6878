// The words and drawings of what stands in a page from its beginning.

import { icon } from "./icons.js";
import { language, words } from "./words.js";

/** Write the page's own texts: `data-word` is an element's text, `data-label` its name, `data-hint` a field's hint. */
export function label() {
  document.documentElement.lang = language.lang;
  document.documentElement.dir = language.dir;
  for (const each of document.querySelectorAll("[data-word]")) each.append(words[each.dataset.word]);
  for (const each of document.querySelectorAll("[data-label]")) each.setAttribute("aria-label", words[each.dataset.label]);
  for (const each of document.querySelectorAll("[data-hint]")) each.placeholder = words[each.dataset.hint];
  for (const each of document.querySelectorAll("[data-icon]")) each.prepend(icon(each.dataset.icon));
}
