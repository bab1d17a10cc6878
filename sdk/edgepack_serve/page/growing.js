// An answer on the page while it grows: what is settled stays as it is, its end is drawn anew or lengthened.

import { blocks } from "./blocks.js";
import { lengthened, rendered } from "./render.js";

const REST = 4; // of every drawing's time, so many parts are left to whoever scrolls and types

/** Draws a Markdown text into an element, as often as there is time for it. */
export class Growing {
  constructor(place, ways, drawn = () => {}) {
    this.place = place;
    this.ways = ways;
    this.drawn = drawn;
    this.text = "";
    this.settled = 0; // the text up to here is drawn for good
    this.open = []; // the blocks that may still change
    this.last = []; // and their elements
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
    this.earliest = Infinity;
    requestAnimationFrame(() => {
      const after = performance.now(); // the browser has laid it out by now
      this.earliest = after + REST * (after - before);
    });
  }

  /** Show this text now. */
  finish(text) {
    cancelAnimationFrame(this.asked);
    this.asked = 0;
    this.text = text;
    const found = blocks(text.slice(this.settled));
    if (found.length) this.draw(found);
    this.drawn();
  }

  draw(found) {
    const [first] = this.last;
    const kept = first && lengthened(first, this.open[0], found[0], this.ways) ? first : null;
    for (const element of this.last) if (element !== kept) element.remove();
    const elements = found.map((block, at) => (at === 0 && kept) || rendered(block, this.ways));
    for (const element of elements) if (element !== kept) this.place.append(element);
    const count = unsettled(found, this.text);
    this.open = found.slice(-count);
    this.last = elements.slice(-count);
    this.settled = lineStart(this.text, this.settled, this.open[0].line);
  }
}

/**
 * Return how many blocks at the end may change. Where the last one begins in an unfinished line, or by one as tables do, its
 * lines may yet belong to the block before it: "3" becomes "3. c", "|-" becomes "|-x".
 */
function unsettled(found, text) {
  const last = found.at(-1);
  return found.length > 1 && last.end - last.line <= 2 && !text.endsWith("\n") ? 2 : 1;
}

function lineStart(text, from, line) {
  let at = from;
  for (let left = line; left > 0; left -= 1) at = text.indexOf("\n", at) + 1;
  return at;
}
