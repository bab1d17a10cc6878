// Which addresses of an answer become links, and what of them is shown.

const KNOWN = new Set(["http:", "https:", "mailto:"]);
const LONGEST = 2048;

/** Return `{href, shown}` of an address that may be a link, null of any other: scripts, data, files, relative ones. */
export function linkable(address) {
  if (address.length > LONGEST || !/^(?:https?:\/\/|mailto:)[^\s\p{Cc}]+$/iu.test(address)) return null;
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (!KNOWN.has(url.protocol)) return null;
  // The host is what a reader must see before following, in the form that no letter of another script can imitate.
  return { href: url.href, shown: url.protocol === "mailto:" ? url.pathname : url.host };
}
