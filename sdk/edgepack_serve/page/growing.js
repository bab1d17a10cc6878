// An answer on the page while it grows: what is settled stays as it is, its end is drawn anew.

import { blocks } from "./blocks.js";
import { rendered } from "./render.js";

const REST = 4; // of every drawing's time, so many parts are left to whoever scrolls and types

/** Draws a Markdown text into an element, as often as there is time for it. */
export class Growing {
  constructor(place, ways, drawn = () => {}) {
    this.place = place;
    this.ways = ways;
    this.drawn = drawn;
    this.text = "";
    this.settled = 0; // the text up to here is drawn for good
    this.last = []; // the elements of the blocks that may still change
    this.code = null; // the only such block, where it is code
    this.earliest = 0;
    this.asked = 0;
  }

  /** Show this text, which begins with the one before, soon. */
  show(text) {
    this.text = text;
    this.asked ||= requestAnimationFrame((now) => this.frame(now));
  }

  frame(now) {
    if (now < this.earliest) {
      this.asked = requestAnimationFrame((later) => this.frame(later));
      return;
    }
    const before = performance.now();
    this.finish(this.text);
    const after = performance.now();
    this.earliest = after + REST * (after - before);
  }

  /** Show this text now. */
  finish(text) {
    cancelAnimationFrame(this.asked);
    this.asked = 0;
    this.text = text;
    const found = blocks(text.slice(this.settled));
    if (!found.length || this.grown(found)) return this.drawn();
    for (const element of this.last) element.remove();
    const drawn = found.map((block) => rendered(block, this.ways));
    for (const element of drawn) this.place.append(element);
    const open = unsettled(found, text);
    this.last = drawn.slice(-open);
    this.code = open === 1 && found.at(-1).kind === "code" ? found.at(-1) : null;
    this.settled = lineStart(text, this.settled, found.at(-open).line);
    return this.drawn();
  }

  /** Lengthen a code block in place, so that what is selected in it stays selected. */
  grown(found) {
    const [block] = found;
    const same = found.length === 1 && this.code && block.kind === "code" && block.language === this.code.language;
    if (!same || !block.text.startsWith(this.code.text)) return false;
    this.last[0].querySelector("pre code").firstChild.appendData(block.text.slice(this.code.text.length));
    this.code = block;
    return true;
  }
}

/** Return how many blocks at the end may change: an unfinished line may yet belong to the block before it ("3" to "3. c"). */
function unsettled(found, text) {
  const last = found.at(-1);
  return found.length > 1 && last.end - last.line === 1 && !text.endsWith("\n") ? 2 : 1;
}

function lineStart(text, from, line) {
  let at = from;
  for (let left = line; left > 0; left -= 1) at = text.indexOf("\n", at) + 1;
  return at;
}
