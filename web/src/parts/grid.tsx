// A list of any length, of which only what is on screen exists.

import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

interface Props {
  n: number;
  width: number;
  height: number;
  gap?: number;
  label: string;
  item: (i: number) => ComponentChildren;
  keyOf: (i: number) => string | number;
}

export function Grid({ n, width, height, gap = 12, label, item, keyOf }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const [view, setView] = useState({ columns: 1, first: 0, last: 12 });
  const measure = () => {
    const at = box.current!;
    const columns = Math.max(1, Math.floor((at.clientWidth + gap) / (width + gap)));
    const top = Math.max(0, -at.getBoundingClientRect().top), row = height + gap;
    // Two screens beyond either edge are there before they are seen.
    const first = Math.max(0, Math.floor((top - 1.5 * innerHeight) / row)) * columns;
    const last = Math.ceil((top + 2.5 * innerHeight) / row) * columns;
    setView((v) => (v.columns === columns && v.first === first && v.last === last ? v : { columns, first, last }));
  };
  useLayoutEffect(measure, [n, width, height]);
  useEffect(() => {
    let due = 0;
    const later = () => { due ||= requestAnimationFrame(() => { due = 0; if (box.current) measure(); }); };
    addEventListener("scroll", later, { passive: true });
    addEventListener("resize", later);
    return () => { removeEventListener("scroll", later); removeEventListener("resize", later); cancelAnimationFrame(due); };
  }, [n, width, height]);
  const { columns, first } = view, last = Math.min(n, view.last);
  const items = [];
  for (let i = first; i < last; i++) {
    const style = { transform: `translate(${(i % columns) * (width + gap)}px, ${Math.floor(i / columns) * (height + gap)}px)`, width: `${Math.min(width, box.current?.clientWidth ?? width)}px`, height: `${height}px` };
    items.push(<div key={keyOf(i)} class="grid-item" role="listitem" aria-setsize={n} aria-posinset={i + 1} style={style}>{item(i)}</div>);
  }
  return <div ref={box} class="grid" role="list" aria-label={label} onKeyDown={(event) => step(event, columns)} style={{ height: `${Math.max(0, Math.ceil(n / columns) * (height + gap) - gap)}px` }}>{items}</div>;
}

/** Arrow keys move the focus from card to card. */
function step(event: KeyboardEvent, columns: number): void {
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  const here = (event.target as Element).closest(".grid-item");
  if (!by || !here || (event.target as Element).matches("input, select, textarea")) return;
  const place = Number(here.getAttribute("aria-posinset")) + by;
  const next = here.parentElement!.querySelector<HTMLElement>(`.grid-item[aria-posinset="${place}"] a, .grid-item[aria-posinset="${place}"] button`);
  if (next) { event.preventDefault(); next.focus(); next.scrollIntoView({ block: "nearest" }); }
}
