// The field for what is asked: it grows with its text, Enter sends, Shift and Enter begin a line.

import { byId } from "./dom.js";
import { isEnter } from "./keys.js";
import { kiosk } from "./kiosk.js";

/** Connect the field and its two buttons. `send(text)` returns whether the text was taken. */
export class Composer {
  constructor({ send, stop }) {
    this.field = byId("question");
    this.sendButton = byId("send");
    this.stopButton = byId("stop");
    this.send = send;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.stopButton.addEventListener("click", () => {
      stop();
      this.field.focus();
    });
    this.field.addEventListener("input", () => this.fit());
    this.field.addEventListener("keydown", (event) => {
      if (!isEnter(event)) return;
      event.preventDefault();
      this.submit();
    });
    // A keyboard on a screen may send no key at all, only the line break that it would make.
    this.field.addEventListener("beforeinput", (event) => {
      if (event.inputType !== "insertLineBreak" || event.isComposing || !kiosk) return;
      event.preventDefault();
      this.submit();
    });
    window.addEventListener("resize", () => this.fit());
    this.fit();
  }

  submit() {
    const text = this.field.value.trim();
    if (text && this.send(text)) this.clear();
  }

  clear() {
    this.field.value = "";
    this.fit();
  }

  fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight + 2}px`;
    this.sendButton.disabled = !this.field.value.trim();
  }

  /** Show that an answer is on its way: what stops it takes the place of what sends. */
  busy(answering) {
    const moved = document.activeElement === (answering ? this.sendButton : this.stopButton);
    this.sendButton.hidden = answering;
    this.stopButton.hidden = !answering;
    if (moved) this.field.focus();
  }
}
