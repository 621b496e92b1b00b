// Heat over pictures, as tide.pictures.heat_overlay has it: full colour where a latent fires most, grey where it is silent.

import { sizeOf } from "./clock";
import type { Facts } from "./wire";

const scratch = document.createElement("canvas");

/** Lays the veil of a map over what is drawn at a place of the canvas. */
export function veil(context: CanvasRenderingContext2D, map: ArrayLike<number>, facts: Facts, x: number, y: number, width: number, height: number): void {
  const [rows, columns] = sizeOf(facts), { grey, kept, power } = facts.veil;
  scratch.width = columns;
  scratch.height = rows;
  const small = scratch.getContext("2d", { willReadFrequently: true })!;
  const data = small.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const colour = kept + (1 - kept) * (map[i] / 255) ** power;
    data.data.set([grey, grey, grey, Math.round(255 * (1 - colour))], 4 * i);
  }
  small.putImageData(data, 0, 0);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "low";
  context.drawImage(scratch, x, y, width, height);
}

/** The colour of a share of the strongest heat, for maps without a picture. */
export function glow(share: number, heat: number[][]): string {
  if (share <= 0) return "transparent";
  const position = share * (heat.length - 1), below = Math.min(Math.floor(position), heat.length - 2), rest = position - below;
  const rgb = [0, 1, 2].map((c) => Math.round(255 * (heat[below][c] * (1 - rest) + heat[below + 1][c] * rest)));
  return `rgb(${rgb.join(" ")})`;
}
