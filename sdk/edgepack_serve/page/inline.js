// The inside of a Markdown paragraph as a tree: text, code, emphasis, links, pictures, line breaks. No DOM here.
// Every step is linear in the text, whatever a model writes, and nothing nests deeper than DEEPEST.

const DEEPEST = 32;
const MOST_CUT = 16; // marks at the end of an address that belong to the sentence around it
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'" };
const PUNCTUATION = /[\p{P}\p{S}]/u;
const UNSPACED = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}]/u; // no spaces between words
const APART = (character) => /\s/.test(character) || PUNCTUATION.test(character) || UNSPACED.test(character);

/** Return the pieces of a text: `{kind, text | children | address}`. */
export function inline(text) {
  return new Reader(text).read();
}

/** Where an expression matches next; what was found ahead is not looked for again. */
class Next {
  constructor(expression, text) {
    this.expression = expression;
    this.text = text;
    this.found = expression.exec(text);
  }

  from(at) {
    if (this.found && this.found.index < at) {
      this.expression.lastIndex = at;
      this.found = this.expression.exec(this.text);
    }
    return this.found ? this.found.index : this.text.length;
  }
}

class Reader {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.pieces = [];
    this.brackets = []; // where in `pieces` a link may have begun
    this.ticks = null;
    this.marks = new Next(/[\\`*_~[\]!<&\n]/g, text);
    this.addresses = new Next(/https?:\/\/[^\s<>"`|]{1,2048}/gi, text);
  }

  read() {
    while (this.at < this.text.length) {
      const mark = this.marks.from(this.at);
      const address = this.addresses.from(this.at);
      const next = Math.min(mark, address);
      if (next > this.at) this.say(this.text.slice(this.at, next));
      this.at = next;
      if (next === this.text.length) break;
      if (address <= mark) this.address(this.addresses.found[0]);
      else this.special(this.text[next]);
    }
    return emphasised(this.pieces);
  }

  say(text) {
    const last = this.pieces.at(-1);
    if (last?.kind === "text") last.text += text;
    else this.pieces.push({ kind: "text", text });
  }

  take(length) {
    this.say(this.text.slice(this.at, this.at + length));
    this.at += length;
  }

  special(character) {
    if (character === "\\") return this.escape();
    if (character === "`") return this.code();
    if (character === "\n") return this.lineEnd();
    if (character === "<") return this.angle();
    if (character === "&") return this.entity();
    if (character === "[") return this.open(1);
    if (character === "]") return this.close();
    if (character === "!") return this.text[this.at + 1] === "[" ? this.open(2) : this.take(1);
    return this.mark(character);
  }

  escape() {
    const next = this.text[this.at + 1] ?? "";
    if (next === "\n") this.at += 1;
    else if (/[!-/:-@[-`{-~]/.test(next)) {
      this.say(next);
      this.at += 2;
    } else this.take(1);
  }

  lineEnd() {
    const last = this.pieces.at(-1);
    if (last?.kind === "text") last.text = last.text.trimEnd();
    this.pieces.push({ kind: "break" });
    this.at += 1;
    while (this.text[this.at] === " ") this.at += 1;
  }

  code() {
    const length = run(this.text, this.at);
    const end = this.tick(length, this.at + length);
    if (end < 0) return this.take(length);
    let inside = this.text.slice(this.at + length, end).replaceAll("\n", " ");
    if (inside.startsWith(" ") && inside.endsWith(" ") && inside.trim()) inside = inside.slice(1, -1);
    this.pieces.push({ kind: "code", text: inside });
    this.at = end + length;
  }

  /** Return where the next run of exactly so many backticks begins; all runs are looked up once. */
  tick(length, from) {
    if (!this.ticks) {
      this.ticks = new Map();
      for (const found of this.text.matchAll(/`+/g)) {
        const places = this.ticks.get(found[0].length) ?? { at: 0, places: [] };
        places.places.push(found.index);
        this.ticks.set(found[0].length, places);
      }
    }
    const same = this.ticks.get(length);
    if (!same) return -1;
    while (same.at < same.places.length && same.places[same.at] < from) same.at += 1;
    return same.places[same.at] ?? -1;
  }

  angle() {
    const found = /<(?:(br ?\/?)|((?:https?:\/\/|mailto:)[^\s<>]{1,2048}))>/iy;
    found.lastIndex = this.at;
    const match = found.exec(this.text);
    if (!match) return this.take(1);
    if (match[1]) this.pieces.push({ kind: "break" });
    else this.pieces.push({ kind: "link", address: match[2], children: [{ kind: "text", text: match[2] }] });
    this.at += match[0].length;
  }

  entity() {
    const found = /&(#39|[a-z]{2,4});/y;
    found.lastIndex = this.at;
    const match = found.exec(this.text);
    if (!match || !(match[1] in ENTITIES)) return this.take(1);
    this.say(ENTITIES[match[1]]);
    this.at += match[0].length;
  }

  address(found) {
    let address = found;
    for (let cut = 0; cut < MOST_CUT && /[.,;:!?'")\]*_~]$/.test(address); cut += 1) {
      if (address.endsWith(")") && address.split("(").length >= address.split(")").length) break;
      address = address.slice(0, -1);
    }
    const inWord = /[\p{L}\p{N}]$/u.test(this.text.slice(Math.max(0, this.at - 2), this.at));
    if (inWord || this.brackets.length) this.take(address.length);
    else {
      this.pieces.push({ kind: "link", address, children: [{ kind: "text", text: address }] });
      this.at += address.length;
    }
  }

  open(length) {
    if (this.brackets.length === DEEPEST) this.brackets.shift();
    this.brackets.push({ at: this.pieces.length, picture: length === 2 });
    this.pieces.push({ kind: "text", text: this.text.slice(this.at, this.at + length) });
    this.pieces.push({ kind: "text", text: "" }); // what follows stays apart from the bracket
    this.at += length;
  }

  close() {
    const bracket = this.brackets.pop();
    const target = bracket && this.target();
    if (!target) return this.take(1);
    const children = emphasised(this.pieces.splice(bracket.at).slice(1));
    if (bracket.picture) this.pieces.push({ kind: "picture", address: target.address, text: said(children) });
    else {
      this.pieces.push({ kind: "link", address: target.address, children });
      this.brackets = this.brackets.filter((each) => each.picture); // no link within a link
    }
    this.at += target.length;
  }

  /** Return what stands in the round brackets after `]`: its address, and the length of all. */
  target() {
    const found = /\]\(\s{0,8}(?:<([^<>\n]{0,2048})>|((?:[^\s()]|\([^\s()]{0,256}\)){0,2048}))(?:\s{1,8}(?:"[^"\n]{0,512}"|'[^'\n]{0,512}'))?\s{0,8}\)/y;
    found.lastIndex = this.at;
    const match = found.exec(this.text);
    return match && { address: match[1] ?? match[2], length: match[0].length };
  }

  mark(character) {
    const count = run(this.text, this.at);
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[this.at + count] ?? " ";
    const left = !/\s/.test(after) && (!PUNCTUATION.test(after) || APART(before));
    const right = !/\s/.test(before) && (!PUNCTUATION.test(before) || APART(after));
    const within = character === "_"; // snake_case is no emphasis
    const opens = left && (!within || !right || PUNCTUATION.test(before));
    const closes = right && (!within || !left || PUNCTUATION.test(after));
    const counts = character === "~" ? count === 2 : count <= 3;
    if (counts && (opens || closes)) {
      this.pieces.push({ kind: "mark", character, count, opens, closes });
      this.at += count;
    } else this.take(count);
  }
}

function run(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

/** Return the text of a tree without its form. */
export function said(pieces) {
  return pieces.map((each) => each.text ?? (each.children ? said(each.children) : " ")).join("");
}

// The stack of CommonMark's emphasis: each level is a mark that was opened, with what was said since.
function emphasised(pieces) {
  const levels = [{ nodes: [] }];
  for (const piece of pieces) {
    if (piece.kind !== "mark") {
      if (piece.kind !== "text" || piece.text) levels.at(-1).nodes.push(piece);
      continue;
    }
    let left = piece.count;
    while (left && piece.closes) {
      const at = opener(levels, piece);
      if (at < 0) break;
      while (levels.length > at + 1) unmade(levels);
      const level = levels[at];
      const used = level.left >= 2 && left >= 2 ? 2 : 1;
      const kind = level.mark.character === "~" ? "struck" : used === 2 ? "strong" : "emphasis";
      level.nodes = [{ kind, children: level.nodes }];
      level.left -= used;
      left -= used;
      if (!level.left) levels.at(-2).nodes.push(...levels.pop().nodes);
    }
    if (!left) continue;
    if (piece.opens && levels.length < DEEPEST) levels.push({ mark: piece, left, nodes: [] });
    else levels.at(-1).nodes.push({ kind: "text", text: piece.character.repeat(left) });
  }
  while (levels.length > 1) unmade(levels);
  return levels[0].nodes;
}

function opener(levels, closer) {
  for (let at = levels.length - 1; at > 0; at -= 1) {
    const { mark, left } = levels[at];
    if (mark.character !== closer.character) continue;
    if (mark.character === "~" && left !== closer.count) continue;
    const either = (mark.opens && mark.closes) || (closer.opens && closer.closes);
    const threes = (mark.count + closer.count) % 3 === 0 && (mark.count % 3 || closer.count % 3);
    if (!(either && threes)) return at;
  }
  return -1;
}

function unmade(levels) {
  const { mark, left, nodes } = levels.pop();
  const below = levels.at(-1).nodes;
  below.push({ kind: "text", text: mark.character.repeat(left) });
  for (const node of nodes) below.push(node);
}
