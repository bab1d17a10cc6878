// The blocks of a Markdown text: paragraphs, headings, code, quotes, lists, tables, rules. HTML is text. No DOM here.
// A block ends where the next begins, so whoever reads a growing text reads again from its last block alone.

const DEEPEST = 12;
const MOST_COLUMNS = 64;

/** Return the blocks of a text, each with the number of the line at which it begins. */
export function blocks(text) {
  return read(text.split(/\r?\n/), 0);
}

function read(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = code(lines, at) ?? heading(lines, at) ?? rule(lines, at);
    const made = block ?? (depth < DEEPEST ? quote(lines, at, depth) ?? list(lines, at, depth) : null);
    const whole = made ?? table(lines, at) ?? paragraph(lines, at, depth);
    whole.line = at;
    found.push(whole);
    at = whole.end;
  }
  return found;
}

const indent = (line) => line.length - line.trimStart().length;
const untabbed = (line) => line.replace(/^[ \t]{0,400}/, (blank) => blank.replaceAll("\t", "    "));

function code(lines, at) {
  const fence = /^( {0,3})(`{3,}|~{3,})([^`]*)$/.exec(lines[at]);
  if (!fence) return null;
  const inside = [];
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end].trim();
    if (line.startsWith(fence[2]) && line === fence[2][0].repeat(line.length) && indent(lines[end]) < 4) break;
    inside.push(lines[end].slice(Math.min(indent(lines[end]), fence[1].length)));
  }
  const [language] = fence[3].trim().split(/\s/, 1);
  return { kind: "code", text: inside.join("\n"), language: language.slice(0, 40), end: Math.min(end + 1, lines.length) };
}

function heading(lines, at) {
  const marks = /^ {0,3}(#{1,6})(?=\s|$)/.exec(lines[at]);
  if (!marks) return null;
  let text = lines[at].slice(marks[0].length).trim();
  const tail = /(?:^|\s)#{1,200}$/.exec(text.slice(-201));
  if (tail) text = text.slice(0, text.length - tail[0].length).trimEnd();
  return { kind: "heading", level: marks[1].length, text, end: at + 1 };
}

function rule(lines, at) {
  if (!/^ {0,3}[-*_]/.test(lines[at])) return null;
  return /^(?:-{3,}|\*{3,}|_{3,})$/.test(lines[at].replace(/\s/g, "")) ? { kind: "rule", end: at + 1 } : null;
}

function quote(lines, at, depth) {
  let end = at;
  const inside = [];
  for (; end < lines.length && /^ {0,3}>/.test(lines[end]); end += 1) {
    inside.push(lines[end].replace(/^ {0,3}> ?/, ""));
  }
  return end > at ? { kind: "quote", blocks: read(inside, depth + 1), end } : null;
}

/** Return the mark of an item of a list: where it stands, whether it counts, where its text begins. */
function marked(line) {
  const found = /^( *)(?:[-*+]|(\d{1,9})[.)])( {1,4}(?! )| (?= )|$)/.exec(untabbed(line));
  if (!found) return null;
  return { indent: found[1].length, number: found[2], width: found[0].length + (found[3] ? 0 : 1) };
}

function list(lines, at, depth) {
  const first = marked(lines[at]);
  if (!first || first.indent > 3) return null;
  const ordered = first.number !== undefined;
  const items = [];
  let [end, loose, blank, open] = [at, false, false, first];
  while (end < lines.length) {
    const line = untabbed(lines[end]);
    if (!line.trim()) {
      blank = true;
      end += 1;
      continue;
    }
    const mark = rule(lines, end) ? null : marked(line);
    const inner = indent(line) >= Math.min(open.width, open.indent + 2) && items.length > 0;
    if (mark && !inner) {
      if ((mark.number !== undefined) !== ordered) break;
      items.push([line.slice(mark.width)]);
      open = mark;
      loose ||= blank && items.length > 1;
    } else if (inner) {
      if (blank) items.at(-1).push("");
      items.at(-1).push(line.slice(Math.min(indent(line), open.width)));
    } else if (!blank && !begins(lines, end)) items.at(-1).push(line.trimStart());
    else break;
    blank = false;
    end += 1;
  }
  return { kind: "list", ordered, loose, start: Number(first.number ?? 1), items: items.map((each) => item(each, depth)), end };
}

function item(lines, depth) {
  const task = /^\[([ xX])\] +/.exec(lines[0]);
  if (task) lines[0] = lines[0].slice(task[0].length);
  return { done: task ? task[1] !== " " : null, blocks: read(lines, depth + 1) };
}

/** Return the cells of a row; `\|` is a bar of the text. */
function cells(line) {
  const found = [""];
  for (const part of line.trim().split(/(\\\||\|)/)) {
    if (part === "|") found.push("");
    else found[found.length - 1] += part === "\\|" ? "|" : part;
  }
  if (found.length > 1 && !found[0].trim()) found.shift();
  if (found.length > 1 && !found.at(-1).trim()) found.pop();
  return found.map((each) => each.trim());
}

const ALIGNMENTS = { "::": "center", ":-": "start", "-:": "end", "--": "" };

function table(lines, at) {
  const under = lines[at + 1]?.trim() ?? "";
  if (!lines[at].includes("|") || !under.includes("-") || /[^\s|:-]/.test(under)) return null;
  const ruled = cells(under);
  const head = cells(lines[at]);
  if (head.length !== ruled.length || head.length > MOST_COLUMNS || !ruled.every((each) => /^:?-+:?$/.test(each))) return null;
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && lines[end].trim() && (lines[end].includes("|") || !begins(lines, end)); end += 1) {
    const row = cells(lines[end]).slice(0, head.length);
    while (row.length < head.length) row.push("");
    rows.push(row);
  }
  const aligned = ruled.map((each) => ALIGNMENTS[(each[0] === ":" ? ":" : "-") + (each.length > 1 && each.at(-1) === ":" ? ":" : "-")]);
  return { kind: "table", head, rows, aligned, end };
}

/** Say whether a line begins a block of its own also right after a paragraph's line. */
function begins(lines, at) {
  const line = lines[at];
  if (/^ {0,3}(?:>|`{3}|~{3}|#{1,6}(?:\s|$))/.test(line) || rule(lines, at)) return true;
  const mark = marked(line);
  return Boolean(mark && mark.indent < 4 && (mark.number === undefined || mark.number === "1")) || Boolean(table(lines, at));
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && (depth >= DEEPEST || !begins(lines, end))) end += 1;
  return { kind: "paragraph", text: lines.slice(at, end).map((line) => line.trimStart()).join("\n").trimEnd(), end };
}
