// The drawings of buttons. They are decoration: what a button does, its words say.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = {
  send: ["M12 19V5", "M5.5 11.5 12 5l6.5 6.5"],
  stop: ["M7 7h10v10H7z"],
  copy: ["M9 9h10v10H9z", "M15 9V5H5v10h4"],
  done: ["M5 12.5 10 17.5 19 7"],
  edit: ["M5 19l1-4L16 5l3 3L9 18z", "M14 7l3 3"],
  again: ["M19 12a7 7 0 1 1-2.2-5.1L19 9", "M19 4v5h-5"],
  settings: ["M4 7h9", "M17 7h3", "M15 5v4", "M4 17h3", "M11 17h9", "M9 15v4"],
  theme: ["M12 4a8 8 0 1 0 0 16z", "M12 4a8 8 0 0 1 0 16"],
  fresh: ["M12 5v14", "M5 12h14"],
  status: ["M4 13h4l2.5-7 3.5 12 2.5-5H20"],
  chat: ["M5 5h14v11h-8l-4 3.5V16H5z"],
  down: ["M12 5v14", "M5.5 12.5 12 19l6.5-6.5"],
  close: ["M6 6l12 12", "M18 6 6 18"],
};

/** Return the drawing of this name. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  for (const line of DRAWN[name]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", line);
    svg.append(path);
  }
  return svg;
}
