// The page follows an answer that grows, until its reader scrolls back.

import { byId } from "./dom.js";

const NEAR = 64; // pixels from the end that count as the end

/** Keeps the newest text in view. */
export class Following {
  constructor() {
    this.on = true;
    this.last = window.scrollY;
    this.button = byId("newest");
    this.button.addEventListener("click", () => this.toEnd());
    window.addEventListener("scroll", () => this.scrolled(), { passive: true });
    window.addEventListener("resize", () => this.grown(), { passive: true });
  }

  scrolled() {
    if (this.atEnd()) this.on = true;
    else if (window.scrollY < this.last - 2) this.on = false;
    this.last = window.scrollY;
    this.button.hidden = this.on || this.atEnd();
  }

  atEnd() {
    return window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - NEAR;
  }

  /** Say that there is more on the page than before. */
  grown() {
    if (this.on) window.scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
    this.button.hidden = this.on || this.atEnd();
  }

  toEnd() {
    this.on = true;
    this.grown();
  }
}
