// Sheets of thumbnails, decoded off the main thread and kept as bitmaps.

import { clock, framesOf } from "./clock";
import type { Facts } from "./wire";

const KEPT = 96;

export class Sheets {
  private bitmaps = new Map<number, ImageBitmap>();
  private asked = new Set<number>();
  private tile: [number, number] = [64, 64];
  private side = 16;
  private frames = 1;
  private stamp = "";

  constructor(private base: string, private arrived: () => void) {}

  lay(facts: Facts): void {
    this.tile = facts.tile;
    this.side = facts.sheetSide;
    this.stamp = facts.stamp;
    this.frames = framesOf(facts);
    const sheets = Math.ceil((facts.nImages * this.frames) / this.side ** 2);
    // All of them, one after the other, while there are few enough to keep: then no card waits for its pictures.
    if (sheets <= KEPT) void (async () => { for (let i = 0; i < sheets; i++) await this.load(i); })();
  }

  /** Height over width of a thumbnail. */
  get shape(): number { return this.tile[0] / this.tile[1]; }

  private async load(sheet: number): Promise<void> {
    if (this.asked.has(sheet)) return;
    this.asked.add(sheet);
    try {
      const answer = await fetch(`${this.base}/${sheet}.jpg?v=${this.stamp}`);
      if (!answer.ok) throw new Error(answer.statusText);
      this.bitmaps.set(sheet, await createImageBitmap(await answer.blob()));
      while (this.bitmaps.size > KEPT) {
        const oldest = this.bitmaps.keys().next().value!;
        this.bitmaps.get(oldest)!.close();
        this.bitmaps.delete(oldest);
        this.asked.delete(oldest);
      }
    } catch { this.asked.delete(sheet); return; }
    this.arrived();
  }

  /** Draws a thumbnail, of a clip the frame that is shown now; false while it is not here. */
  draw(context: CanvasRenderingContext2D, image: number, x: number, y: number, width: number, height: number): boolean {
    const number = image * this.frames + (clock.tick % this.frames);
    const sheet = Math.floor(number / this.side ** 2), place = number % this.side ** 2;
    const bitmap = this.bitmaps.get(sheet);
    if (!bitmap) { void this.load(sheet); return false; }
    const [h, w] = this.tile;
    context.drawImage(bitmap, (place % this.side) * w, Math.floor(place / this.side) * h, w, h, x, y, width, height);
    return true;
  }
}
