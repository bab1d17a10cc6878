// Dark or light: as the system has it, or as the switch says. A plain script, so that it is set before the first paint.

(() => {
  const KEY = "edgepack.theme";
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  let chosen = null;
  try {
    chosen = sessionStorage.getItem(KEY);
  } catch {
    // a browser that keeps nothing follows the system
  }
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (!button) return; // a screen that strangers share has no switch
    const show = () => button.setAttribute("aria-pressed", String(dark()));
    show();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      show();
      try {
        sessionStorage.setItem(KEY, root.dataset.theme);
      } catch {
        // it holds until the page is left
      }
    });
  });
})();
