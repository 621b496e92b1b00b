// What was read of a run, kept while the page is open.

import { useEffect, useState } from "preact/hooks";
import { json, packed, post, type Card, type Columns, type Facts, type Latent, type Packed, type RunInfo, type Said } from "./wire";
import { Sheets } from "./sheets";

const CARDS_KEPT = 4000, RETRY = 3000;
const BLOCK = 64; // cards in a file of a static export

export class Run {
  readonly base: string;
  readonly sheets: Sheets;
  facts!: Facts;
  columns!: Columns;
  names = new Map<number, Said>();
  /** Why cards could not be read, while they cannot. */
  error = "";
  private cards = new Map<number, Card>();
  private asked = new Set<number>();
  private waiting = new Set<number>();
  private timer = 0;
  private blocks = new Map<number, Promise<void>>();
  private listeners = new Set<() => void>();

  constructor(readonly info: RunInfo, readonly isStatic: boolean) {
    this.base = `api/runs/${info.id}`;
    this.sheets = new Sheets(`${this.base}/sheets`, () => this.tell());
  }

  async open(): Promise<this> {
    const [facts, columns, names] = await Promise.all([json<Facts>(`${this.base}/facts.json`), packed(`${this.base}/columns.bin`), json<Record<string, Said>>(`${this.base}/names.json`)]);
    this.facts = facts;
    this.sheets.lay(facts);
    this.columns = Object.fromEntries(Object.entries(columns).map(([name, each]) => [name, each.values])) as unknown as Columns;
    this.names = new Map(Object.entries(names).map(([latent, said]) => [Number(latent), said]));
    return this;
  }

  listen(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => { this.listeners.delete(listener); };
  }
  tell(): void { this.listeners.forEach((each) => each()); }

  card(latent: number): Card | undefined {
    const found = this.cards.get(latent);
    if (!found && !this.asked.has(latent)) this.waiting.add(latent);
    return found;
  }

  /** Asks for the cards that `card` was called for and that are not here. */
  fetchCards(): void {
    if (!this.waiting.size || this.timer) return;
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      const latents = [...this.waiting];
      this.waiting.clear();
      latents.forEach((each) => this.asked.add(each));
      if (this.isStatic) [...new Set(latents.map((each) => Math.floor(each / BLOCK)))].forEach((block) => void this.block(block));
      else for (let i = 0; i < latents.length; i += 96) void this.load(`${this.base}/cards.bin?latents=${latents.slice(i, i + 96)}`, latents.slice(i, i + 96));
    });
  }

  private block(number: number): Promise<void> {
    let found = this.blocks.get(number);
    if (!found) {
      const latents = Array.from({ length: BLOCK }, (_, i) => number * BLOCK + i);
      found = this.load(`${this.base}/cards/${number}.bin`, latents).finally(() => this.blocks.delete(number));
      this.blocks.set(number, found);
    }
    return found;
  }

  private async load(path: string, latents: number[]): Promise<void> {
    try {
      const found: Packed = await packed(path);
      const [, steps] = found.frequency.shape, [, m, ...size] = found.maps.shape, cells = size.reduce((a, b) => a * b, 1);
      found.latent.values.forEach((latent, i) => {
        this.cards.set(latent, {
          latent,
          frequency: (found.frequency.values as Float32Array).subarray(i * steps, (i + 1) * steps),
          images: (found.images.values as Int32Array).subarray(i * m, (i + 1) * m),
          maps: (found.maps.values as Uint8Array).subarray(i * m * cells, (i + 1) * m * cells),
        });
        this.asked.delete(latent);
      });
      while (this.cards.size > CARDS_KEPT) this.cards.delete(this.cards.keys().next().value!);
      this.error = "";
    } catch (failed) {
      // Not asked for again at once: the server may be gone.
      this.error = (failed as Error).message;
      setTimeout(() => { latents.forEach((each) => this.asked.delete(each)); this.tell(); }, RETRY);
    }
    this.tell();
  }

  latent = (number: number): Promise<Latent> => json(`${this.base}/latents/${number}.json`);
  picture = (image: number): string => `${this.base}/pictures/${image}.jpg?v=${this.facts.stamp}`;

  concept(latent: number): string | null {
    const at = this.columns.concept[latent];
    return at === undefined || at < 0 ? null : this.facts.concepts[at].concept;
  }

  /** What a latent is called, and null where nobody and nothing has named it. */
  nameOf(latent: number): string | null { return this.names.get(latent)?.name ?? this.concept(latent); }

  async search(text: string): Promise<{ latents: number[]; images: number[] }> {
    if (!this.isStatic) return json(`${this.base}/search?text=${encodeURIComponent(text)}`);
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const holds = (said: string) => words.every((word) => said.toLowerCase().includes(word));
    const latents: number[] = [];
    for (let i = 0; i < this.facts.nLatents; i++) {
      const said = [this.concept(i), this.names.get(i)?.name, ...(this.names.get(i)?.notes ?? []).map((n) => n.note)].filter(Boolean).join(" ");
      if (said && holds(said)) latents.push(i);
    }
    return { latents, images: [] };
  }

  async say(latent: number, said: { name?: string; note?: string; star?: boolean }): Promise<void> {
    const now = await post<Said>(`${this.base}/names`, { latent, by: reader(), ...said });
    this.names.set(latent, now);
    this.tell();
  }
}

/** Under whose name the reader's notes are kept. */
export function reader(): string { return localStorage.getItem("tide-reader")?.trim() || "me"; }

const open = new Map<string, Promise<Run>>();

export function openRun(info: RunInfo, isStatic: boolean): Promise<Run> {
  let found = open.get(info.id);
  if (!found) {
    open.set(info.id, (found = new Run(info, isStatic).open()));
    found.catch(() => open.delete(info.id));
  }
  return found;
}
export const forget = (): void => open.clear();

/** Draws again whenever something of the run has arrived. */
export function useRun(run: Run): void {
  const [, again] = useState(0);
  useEffect(() => {
    let due = 0;
    const stop = run.listen(() => { due ||= requestAnimationFrame(() => { due = 0; again((n) => n + 1); }); });
    return () => { stop(); cancelAnimationFrame(due); };
  }, [run]);
}

export interface Loaded<T> { value?: T; error?: string }

/** The result of a request that is made again when `keys` change. */
export function useLoaded<T>(load: () => Promise<T>, keys: unknown[]): Loaded<T> {
  const [found, set] = useState<Loaded<T> & { keys?: string }>({});
  const key = JSON.stringify(keys);
  useEffect(() => {
    let here = true;
    load().then((value) => here && set({ value, keys: key }), (error: Error) => here && set({ error: error.message, keys: key }));
    return () => { here = false; };
  }, [key]);
  return found.keys === key ? found : {};
}

