// Every state of the page is its address: what is chosen is a parameter, so links can be kept and the back button works.

import { useEffect, useState } from "preact/hooks";

export type Params = Record<string, string>;

// What is typed changes the state at every key. Browsers refuse so many new addresses, so these are written a little later.
let current = location.search, due = 0;

function write(): void {
  clearTimeout(due);
  due = 0;
  if (location.search !== current) history.replaceState(null, "", current || location.pathname);
}
addEventListener("pagehide", write);

export function params(): Params {
  return Object.fromEntries(new URLSearchParams(current));
}

export function href(changes: Record<string, string | number | null | undefined>, keep = false): string {
  const found = new URLSearchParams(keep ? current : "");
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") found.delete(name);
    else found.set(name, String(value));
  }
  found.delete("token");
  return `?${found}`;
}

const listeners = new Set<() => void>();
const changed = () => listeners.forEach((each) => each());
addEventListener("popstate", () => { clearTimeout(due); due = 0; current = location.search; changed(); });

export function go(address: string, replace = false): void {
  if (address === current) return;
  if (replace) due ||= window.setTimeout(write, 250);
  else { write(); history.pushState(null, "", address); }
  current = address;
  changed();
  if (!replace) {
    scrollTo(0, 0);
    // A reader of the screen hears the new page, and the tab key begins at its top.
    requestAnimationFrame(() => { const main = document.getElementById("main"); main?.setAttribute("tabindex", "-1"); main?.focus(); });
  }
}

/** Links of this page change its state; all others, and clicks for a new tab, are the browser's. */
addEventListener("click", (event) => {
  const link = (event.target as Element).closest?.("a");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || link.target || link.hasAttribute("download")) return;
  if (link.getAttribute("href")!.startsWith("#")) return; // within the page
  const url = new URL(link.href);
  if (url.origin !== location.origin || url.pathname !== location.pathname || !url.search) return;
  event.preventDefault();
  go(url.search);
});

export function useParams(): Params {
  const [, again] = useState(0);
  useEffect(() => {
    const listen = () => again((n) => n + 1);
    listeners.add(listen);
    return () => { listeners.delete(listen); };
  }, []);
  return params();
}
