// Blocks of Markdown as elements. Nothing of an answer becomes an attribute but checked addresses, and nothing is fetched.

import { linkable } from "./addresses.js";
import { copyButton } from "./copying.js";
import { direction, make } from "./dom.js";
import { inline } from "./inline.js";
import { words } from "./words.js";

/** Return the element of a block. `ways` says whether links can be followed and code copied. */
export function rendered(block, ways) {
  return BLOCKS[block.kind](block, ways);
}

/**
 * Have a block's element show what the block has become with more text, and keep what has not changed, with all that is
 * selected in it. Returns false where the whole must be drawn anew.
 */
export function lengthened(element, before, after, ways) {
  return before.kind === after.kind && (LENGTHENED[after.kind]?.(element, before, after, ways) ?? false);
}

const BLOCKS = {
  paragraph: (block, ways) => make("p", { dir: "auto" }, phrases(block.text, ways)),
  // All headings of an answer are of one level: a model may begin with any, and an outline must not skip one.
  heading: (block, ways) => make("h3", { dir: "auto", class: `level-${block.level}` }, phrases(block.text, ways)),
  rule: () => make("hr"),
  quote: (block, ways) => directed("blockquote", {}, block.blocks.map((each) => rendered(each, ways))),
  code: codeBlock,
  list,
  table,
};

const LENGTHENED = {
  code(element, before, after) {
    if (before.language !== after.language || !after.text.startsWith(before.text)) return false;
    element.querySelector("code").firstChild.appendData(after.text.slice(before.text.length));
    return true;
  },
  list(element, before, after, ways) {
    const same = ["ordered", "loose", "start"].every((each) => before[each] === after[each]);
    if (!same || after.items.length < before.items.length) return false;
    // An unfinished line at the end may be an item, or belong to the one before.
    replaceFrom(element, before.items.length - 2, after.items, (item) => listItem(item, ways));
    return true;
  },
  table(element, before, after, ways) {
    const same = ["head", "aligned"].every((each) => before[each].join("|") === after[each].join("|"));
    if (!same || after.rows.length < before.rows.length) return false;
    replaceFrom(element.querySelector("tbody"), before.rows.length - 1, after.rows, (texts) => row("td", texts, after, ways));
    return true;
  },
};

function replaceFrom(place, from, all, draw) {
  const kept = Math.max(0, from);
  while (place.childElementCount > kept) place.lastChild.remove();
  for (const each of all.slice(kept)) place.append(draw(each));
}

function directed(tag, attributes, children) {
  const element = make(tag, attributes, children);
  element.dir = direction(element.textContent);
  return element;
}

function codeBlock(block, ways) {
  const code = make("code", {}, document.createTextNode(block.text));
  const label = block.language ? words.codeIn(block.language) : words.code;
  const head = make("div", { class: "code-head" }, make("span", {}, block.language || words.code));
  if (ways.copy) head.append(copyButton(() => code.textContent));
  // The text scrolls sideways, so that the keyboard must reach it.
  const text = make("pre", { tabindex: "0", role: "group", "aria-label": label }, code);
  return make("div", { class: "code", dir: "ltr" }, head, text);
}

function list(block, ways) {
  const attributes = { class: block.loose ? "loose" : null, start: block.ordered && block.start !== 1 ? block.start : null };
  return directed(block.ordered ? "ol" : "ul", attributes, block.items.map((item) => listItem(item, ways)));
}

function listItem(item, ways) {
  const [first, ...others] = item.blocks;
  const task = item.done === null ? [] : [item.done ? `☑ ${words.taskDone} ` : `☐ ${words.taskOpen} `];
  const opening = first?.kind === "paragraph" ? phrases(first.text, ways) : first ? [rendered(first, ways)] : [];
  const label = task.map((text) => make("span", { class: "task" }, text));
  return make("li", { class: task.length ? "with-task" : null }, label, opening, others.map((each) => rendered(each, ways)));
}

function table(block, ways) {
  const head = make("thead", {}, row(block.head.some(Boolean) ? "th" : "td", block.head, block, ways));
  const body = make("tbody", {}, block.rows.map((texts) => row("td", texts, block, ways)));
  const whole = make("table", {}, head, body);
  return directed("div", { class: "table", tabindex: "0", role: "group", "aria-label": words.table }, [whole]);
}

function row(tag, texts, { aligned }, ways) {
  const cell = (text, column) =>
    make(tag, { dir: "auto", class: aligned[column] || null, scope: tag === "th" ? "col" : null }, phrases(text, ways));
  return make("tr", {}, texts.map(cell));
}

function phrases(text, ways) {
  return inline(text).map((piece) => phrase(piece, ways));
}

const TAGS = { emphasis: "em", strong: "strong", struck: "s" };

function phrase(piece, ways) {
  if (piece.kind === "text") return piece.text;
  if (piece.kind === "break") return make("br");
  if (piece.kind === "code") return make("code", { dir: "ltr" }, piece.text);
  if (piece.kind === "picture") return picture(piece);
  const children = piece.children.map((each) => phrase(each, ways));
  return piece.kind === "link" ? link(piece.address, children, ways) : make(TAGS[piece.kind], {}, children);
}

function picture({ text, address }) {
  const target = make("bdi", { class: "target" }, address);
  return make("span", { class: "picture" }, words.picture(text), " (", target, ")");
}

function link(address, children, ways) {
  const known = linkable(address);
  const text = make("span", {}, children);
  const itself = text.textContent === address;
  if (!known || !ways.links) {
    if (!itself && address) text.append(" (", make("bdi", { class: "target" }, address), ")");
    return text;
  }
  const outside = { href: known.href, target: "_blank", rel: "noopener noreferrer", title: known.href };
  const whole = make("a", outside, children);
  // A reader sees where a link goes before following it, whatever its text claims.
  if (!itself) whole.append(" ", make("bdi", { class: "target" }, `(${known.shown})`));
  return whole;
}
