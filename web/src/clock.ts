// The frame that all clips of the page show: in step, and still where the reader wants less motion.

import { useEffect, useState } from "preact/hooks";
import type { Facts } from "./wire";

const RATE = 8;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

class Clock {
  /** Counts the frames shown so far; a clip of n frames shows the one of this number modulo n. */
  tick = 0;
  playing = !calm.matches;
  private listeners = new Set<() => void>();
  private timer = 0;

  constructor() { calm.addEventListener("change", () => this.play(!calm.matches)); }

  listen(listener: () => void): () => void {
    this.listeners.add(listener);
    this.wind();
    return () => { this.listeners.delete(listener); this.wind(); };
  }

  play(on: boolean): void { this.playing = on; this.wind(); this.tell(); }

  /** Stops at a frame. */
  show(frame: number): void { this.tick = frame; this.play(false); }

  private wind(): void {
    const due = this.playing && this.listeners.size > 0;
    if (due && !this.timer) this.timer = window.setInterval(() => { if (!document.hidden) { this.tick++; this.tell(); } }, 1000 / RATE);
    if (!due && this.timer) { clearInterval(this.timer); this.timer = 0; }
  }
  private tell(): void { [...this.listeners].forEach((each) => each()); }
}

export const clock = new Clock();

/** The frame of a clip of `n` frames that is shown now; of an image, which waits for nothing, 0. */
export function useFrame(n: number): number {
  const [, again] = useState(0);
  useEffect(() => (n > 1 ? clock.listen(() => again((k) => k + 1)) : undefined), [n]);
  return n > 1 ? clock.tick % n : 0;
}

/** How many frames are shown of each clip; 1 of images. */
export const framesOf = (facts: Facts): number => facts.frames?.shown.length ?? 1;
/** Rows and columns of a map. */
export const sizeOf = (facts: Facts): [number, number] => facts.map.slice(-2) as [number, number];

/** The part of a map that is of a frame: all of it for images. */
export function mapOf<T extends Uint8Array | Float32Array>(facts: Facts, map: T, frame: number): T {
  if (!facts.frames) return map;
  const [rows, columns] = sizeOf(facts), first = facts.frames.map[frame] * rows * columns;
  return map.subarray(first, first + rows * columns) as T;
}
