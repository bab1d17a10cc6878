// An answer as it is read out: its words, without the marks of their form.

import { blocks } from "./blocks.js";
import { inline, said } from "./inline.js";

/** Return what a Markdown text says. */
export function spoken(text) {
  return blocks(text).map(words).filter(Boolean).join("\n");
}

const words = (block) => WORDS[block.kind](block);
const phrase = (text) => said(inline(text));
const lines = (all) => all.map(words).filter(Boolean).join("\n");

const WORDS = {
  paragraph: ({ text }) => phrase(text),
  heading: ({ text }) => phrase(text),
  code: ({ text }) => text,
  rule: () => "",
  quote: (block) => lines(block.blocks),
  list: ({ items }) => items.map((item) => lines(item.blocks)).join("\n"),
  table: ({ head, rows }) => [head, ...rows].map((row) => row.map(phrase).join(", ")).join("\n"),
};
